//! A machine with nothing but memory and a PCI bus, and the driver's side of virtio, for tests.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bus::{AddressSpace, Device, IrqLine, IrqSink, MsiMessage, MsiSink};
use memory::GuestMemory;

use super::{VirtioDevice, VirtioPci, VirtioPciOptions, feature};
use crate::pci::{Devfn, PciBus};

/// Bytes of RAM.
pub(super) const RAM: u64 = 4 << 20;
const DEVFN: Devfn = Devfn::new(3, 0);
const IO_BAR: u64 = 0xc000;
const MSIX_BAR: u64 = 0xfebf_0000;
const MODERN_BAR: u64 = 0xfe00_0000;
/// Where the test's rings begin; each queue gets 64 KiB.
const RINGS: u64 = 0x20_0000;
/// How long a test waits for a worker before it fails.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) const READ: bool = false;
pub(super) const WRITE: bool = true;

#[derive(Default)]
pub(super) struct Interrupts {
    pub(super) messages: Mutex<Vec<u32>>,
    wires: AtomicU32,
}

impl MsiSink for Interrupts {
    fn send(&self, message: MsiMessage) {
        self.messages.lock().unwrap().push(message.data);
    }
}

impl IrqSink for Interrupts {
    fn set_level(&self, pin: u32, level: bool) {
        if level {
            self.wires.fetch_or(1 << pin, Ordering::SeqCst);
        } else {
            self.wires.fetch_and(!(1 << pin), Ordering::SeqCst);
        }
    }
}

/// The machine, with one virtio device in slot 3.
pub(super) struct Machine {
    pub(super) memory: Arc<GuestMemory>,
    pub(super) ports: Arc<AddressSpace>,
    pub(super) mmio: Arc<AddressSpace>,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) bus: PciBus,
    pub(super) function: Arc<VirtioPci>,
}

impl Machine {
    /// With the BARs mapped.
    pub(super) fn new(
        memory: Arc<GuestMemory>,
        device: Arc<dyn VirtioDevice>,
        options: VirtioPciOptions,
    ) -> Self {
        let machine = Self::fresh(memory, device, options);
        machine.map_bars();
        machine
    }

    /// As after power-on.
    pub(super) fn fresh(
        memory: Arc<GuestMemory>,
        device: Arc<dyn VirtioDevice>,
        options: VirtioPciOptions,
    ) -> Self {
        let (ports, mmio) = (Arc::new(AddressSpace::new()), Arc::new(AddressSpace::new()));
        let interrupts = Arc::new(Interrupts::default());
        let router = [0, 1, 2, 3].map(|pin| IrqLine::new(interrupts.clone(), pin));
        let bus = PciBus::new(ports.clone(), mmio.clone(), router, interrupts.clone());
        let wiring = bus.wiring(DEVFN, 1);
        let function = VirtioPci::new(device, options, wiring, memory.clone()).unwrap();
        bus.attach(DEVFN, function.clone());
        Self { memory, ports, mmio, interrupts, bus, function }
    }

    pub(super) fn memory() -> Arc<GuestMemory> {
        Arc::new(GuestMemory::new(&[(0, RAM)]).unwrap())
    }

    pub(super) fn map_bars(&self) {
        for (offset, value) in [(0x10, IO_BAR), (0x14, MSIX_BAR), (0x20, MODERN_BAR), (0x24, 0)] {
            self.bus.write_config(DEVFN, offset, 4, value as u32);
        }
        self.bus.write_config(DEVFN, 4, 2, 7);
    }

    pub(super) fn config(&self, offset: u16, size: u8) -> u32 {
        self.bus.read_config(DEVFN, offset, size)
    }

    pub(super) fn set_config(&self, offset: u16, size: u8, value: u32) {
        self.bus.write_config(DEVFN, offset, size, value);
    }

    pub(super) fn read(&self, offset: u64, size: u8) -> u64 {
        self.mmio.read(MODERN_BAR + offset, size).expect("modern BAR")
    }

    pub(super) fn write(&self, offset: u64, size: u8, value: u64) {
        assert!(self.mmio.write(MODERN_BAR + offset, size, value), "modern BAR");
    }

    pub(super) fn inl(&self, offset: u64, size: u8) -> u64 {
        self.ports.read(IO_BAR + offset, size).expect("legacy BAR")
    }

    pub(super) fn outl(&self, offset: u64, size: u8, value: u64) {
        assert!(self.ports.write(IO_BAR + offset, size, value), "legacy BAR");
    }

    pub(super) fn status(&self) -> u8 {
        self.read(0x14, 1) as u8
    }

    /// Whether the device asserts INTA#: slot 3's goes to PIRQC.
    pub(super) fn intx(&self) -> bool {
        self.interrupts.wires.load(Ordering::SeqCst) == 1 << 2
    }

    /// Offers and accepts all features but those in `without`; returns those accepted.
    pub(super) fn negotiate(&self, without: u64) -> u64 {
        self.write(0x14, 1, 0);
        assert_eq!(self.status(), 0);
        self.write(0x14, 1, 3);
        let mut features = 0;
        for select in 0..2 {
            self.write(0x00, 4, select);
            features |= self.read(0x04, 4) << (32 * select);
        }
        features &= !without;
        for select in 0..2 {
            self.write(0x08, 4, select);
            self.write(0x0c, 4, features >> (32 * select) & 0xffff_ffff);
        }
        self.write(0x14, 1, 0xb);
        features
    }

    /// Enables MSI-X and gives vector `i` the data `0x40 + i`.
    pub(super) fn enable_msix(&self, vectors: u64) {
        let mut at = self.config(0x34, 1) as u16;
        while self.config(at, 1) != 0x11 {
            at = self.config(at + 1, 1) as u16;
        }
        self.set_config(at + 2, 2, 0x8000);
        for vector in 0..vectors {
            let entry = MSIX_BAR + 16 * vector;
            self.mmio.write(entry, 8, 0xfee0_0000);
            self.mmio.write(entry + 8, 4, 0x40 + vector);
            self.mmio.write(entry + 12, 4, 0);
        }
    }

    /// Sets up queue `index` with `size` entries.
    pub(super) fn queue(&self, index: u16, size: u16) -> Queue<'_> {
        let base = RINGS + 0x1_0000 * u64::from(index);
        let queue = Queue::new(self, index, size, base, base + 0x8000, base + 0xc000);
        self.write(0x16, 2, u64::from(index));
        self.write(0x18, 2, u64::from(size));
        self.write(0x1a, 2, u64::from(index) + 1);
        for (register, address) in [(0x20, queue.desc), (0x28, queue.avail), (0x30, queue.used)] {
            self.write(register, 8, address);
            assert_eq!(self.read(register, 8), address);
        }
        self.write(0x1c, 2, 1);
        queue
    }

    pub(super) fn driver_ok(&self) {
        let status = self.status();
        assert_eq!(status & 8, 8, "features accepted");
        self.write(0x14, 1, u64::from(status) | 4);
    }

    pub(super) fn wait(&self, what: &str, done: impl Fn() -> bool) {
        let begin = Instant::now();
        while !done() {
            assert!(begin.elapsed() < PATIENCE, "waited in vain: {what}");
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// The driver's side of a queue. Descriptors are handed out in turn: a test has no more than a
/// queue's worth in flight.
pub(super) struct Queue<'m> {
    pub(super) machine: &'m Machine,
    index: u16,
    size: u16,
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
    next_desc: u16,
    pub(super) next_avail: u16,
    pub(super) next_used: u16,
}

impl<'m> Queue<'m> {
    pub(super) fn new(
        machine: &'m Machine,
        index: u16,
        size: u16,
        desc: u64,
        avail: u64,
        used: u64,
    ) -> Self {
        machine.memory.write(desc, &vec![0; 16 * usize::from(size)]).unwrap();
        machine.memory.write(avail, &vec![0; 6 + 2 * usize::from(size)]).unwrap();
        machine.memory.write(used, &vec![0; 6 + 8 * usize::from(size)]).unwrap();
        Self { machine, index, size, desc, avail, used, next_desc: 0, next_avail: 0, next_used: 0 }
    }

    pub(super) fn set_desc(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let memory = &self.machine.memory;
        let desc = self.desc + 16 * u64::from(index);
        memory.write(desc, &addr.to_le_bytes()).unwrap();
        memory.write(desc + 8, &len.to_le_bytes()).unwrap();
        memory.write(desc + 12, &flags.to_le_bytes()).unwrap();
        memory.write(desc + 14, &next.to_le_bytes()).unwrap();
    }

    /// Makes descriptor `head` available, without a notification.
    pub(super) fn offer(&mut self, head: u16) {
        let memory = &self.machine.memory;
        let slot = self.avail + 4 + 2 * u64::from(self.next_avail % self.size);
        memory.write(slot, &head.to_le_bytes()).unwrap();
        self.next_avail = self.next_avail.wrapping_add(1);
        std::sync::atomic::fence(Ordering::SeqCst);
        memory.write(self.avail + 2, &self.next_avail.to_le_bytes()).unwrap();
    }

    /// Makes a chain of `(address, length, device writes)` available; returns its head.
    pub(super) fn submit(&mut self, buffers: &[(u64, u32, bool)]) -> u16 {
        let head = self.next_desc;
        for (i, &(addr, len, write)) in buffers.iter().enumerate() {
            let index = self.next_desc;
            self.next_desc = (index + 1) % self.size;
            let more = i + 1 < buffers.len();
            let flags = u16::from(more) | u16::from(write) << 1;
            self.set_desc(index, addr, len, flags, self.next_desc);
        }
        self.offer(head);
        head
    }

    pub(super) fn kick(&self) {
        self.machine.write(0x3000 + 4 * u64::from(self.index), 2, u64::from(self.index));
    }

    pub(super) fn used_index(&self) -> u16 {
        let mut index = [0; 2];
        self.machine.memory.read(self.used + 2, &mut index).unwrap();
        u16::from_le_bytes(index)
    }

    /// Waits for the next request to come back; its head and how much was written.
    pub(super) fn wait_used(&mut self) -> (u16, u32) {
        self.machine.wait("a used buffer", || self.used_index() != self.next_used);
        let mut entry = [0; 8];
        let slot = self.used + 4 + 8 * u64::from(self.next_used % self.size);
        self.machine.memory.read(slot, &mut entry).unwrap();
        self.next_used = self.next_used.wrapping_add(1);
        let entry = u64::from_le_bytes(entry);
        (entry as u16, (entry >> 32) as u32)
    }
}

/// Accepts everything but event indices, which the tests of interrupts turn on for themselves.
pub(super) const PLAIN: u64 = feature::EVENT_IDX;

/// Holds a device, fresh from power-on, to what every device promises; `use_it` brings it into some
/// other state.
pub(super) fn conformance(machine: &Machine, use_it: impl Fn()) {
    let device = &machine.function;
    let initial = device.save();
    for _ in 0..2 {
        machine.map_bars();
        use_it();
        device.pause();
        let used = device.save();
        assert_ne!(used, initial, "the device was used");
        device.reset();
        assert_eq!(device.save(), initial, "reset brings back the state after construction");
        assert!(machine.mmio.read(MODERN_BAR, 4).is_none(), "reset takes the windows away");
        device.restore(&used).unwrap();
        assert_eq!(device.save(), used, "restore brings back what was saved");
        assert!(machine.mmio.read(MODERN_BAR, 4).is_some(), "restore maps the windows");
        for cut in 0..used.data.len() {
            let mut damaged = used.clone();
            damaged.data.truncate(cut);
            assert!(device.restore(&damaged).is_err(), "cut at {cut}");
        }
        let mut other = used.clone();
        other.name.push('x');
        assert!(device.restore(&other).is_err(), "another device's state");
        assert_eq!(device.save(), used, "refused state changes nothing");
        device.resume();
        device.reset();
    }
}
