//! The guest: its choices, its accesses, its script.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use arbitrary::{Arbitrary, Unstructured};
use bus::Device;
use machine::pc::board::Pc;
use machine::qtest::Session;
use machine::run::{Board, ResetKind};
use vmstate::Saved;

use crate::bench::{Bench, Control, RAM};
use crate::pci::Function;
use crate::traffic;
use crate::watch;

/// Where the guest has its structures: few places, so that they meet.
const ARENA: u64 = 16 << 20;
/// Bytes of the arena.
const ARENA_SIZE: u64 = 1 << 20;

/// Reads and writes that went well, of each drive by its id.
pub type Reach = BTreeMap<String, (u64, u64)>;

/// A guest on a machine.
pub(crate) struct Guest<'a> {
    bench: &'a Bench,
    control: Arc<Control>,
    /// None only while it is exchanged.
    pc: Option<Arc<Pc>>,
    session: Session,
    source: Unstructured<'a>,
    /// PCI functions with what they answer to.
    pub(crate) functions: Vec<Function>,
    /// State from earlier, a device each.
    saved: Option<Vec<Saved>>,
    /// Reads and writes of each drive, on machines that were left.
    reach: Reach,
}

/// The choices: all of them are the source's.
impl Guest<'_> {
    /// Whether there is anything left to choose with.
    pub(crate) fn is_done(&self) -> bool {
        self.source.is_empty()
    }

    /// Any value of a type. Once the source is dry, the simplest.
    pub(crate) fn any<T: for<'s> Arbitrary<'s> + Default>(&mut self) -> T {
        self.source.arbitrary().unwrap_or_default()
    }

    /// A number within bounds.
    pub(crate) fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        let first = *range.start();
        self.source.int_in_range(range).unwrap_or(first)
    }

    /// Whether something happens that happens `n` times in 100.
    pub(crate) fn percent(&mut self, n: u8) -> bool {
        self.source.ratio(n, 100).unwrap_or(false)
    }

    /// One of several.
    pub(crate) fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        self.source.choose(all).copied().unwrap_or(all[0])
    }

    /// What a register may be written with: any value, few bits, all or none.
    pub(crate) fn value(&mut self) -> u64 {
        match self.within(0..=9) {
            0..=2 => self.any(),
            3..=5 => 1 << self.within(0..=63),
            6..=8 => self.within(0..=255),
            _ => self.pick(&[0, u64::MAX, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x1_0000_0000]),
        }
    }

    /// A number that counts or measures something: mostly small, at times extreme.
    pub(crate) fn amount(&mut self) -> u64 {
        match self.within(0..=9) {
            0..=4 => self.within(0..=9),
            5..=6 => 1 << self.within(0..=32),
            7 => (1u64 << self.within(0..=32)).wrapping_sub(1),
            8 => self.within(0..=0xffff),
            _ => self.pick(&[u64::MAX, 0xffff_ffff, 0x7fff_ffff, 0x8000_0000, 0xffff_fe00]),
        }
    }

    /// A number that is right, but for some cases: next to that, with one bit changed, or any.
    pub(crate) fn nearly(&mut self, right: u64) -> u64 {
        match self.within(0..=79) {
            1 => right.wrapping_add(1),
            2 => right.wrapping_sub(1),
            3 => right ^ 1 << self.within(0..=63),
            4 => self.amount(),
            _ => right,
        }
    }

    /// Where something is, or is not: in the arena, at the ends of RAM, in devices, anywhere.
    pub(crate) fn address(&mut self) -> u64 {
        match self.within(0..=15) {
            0..=10 => self.place(),
            11 => ARENA + self.within(0..=ARENA_SIZE),
            12 => RAM - self.within(0..=0x2000),
            13 => self.pick(&[0, 0xa_0000, 0xc_0000, 0xf_fff0, 0xfee0_0000, 0xfec0_0000]),
            14 => self.pick(&[0xfed0_0000, 0xffff_f000, 0xffff_fffc, 0x1_0000_0000, u64::MAX - 15]),
            _ => self.value(),
        }
    }

    /// An address and a length of data, in whole sectors and in RAM, unless this is to go wrong.
    pub(crate) fn data(&mut self) -> (u64, u64) {
        if self.percent(90) {
            (self.place(), 512 << self.within(0..=5))
        } else {
            (self.address(), self.amount())
        }
    }

    /// One of the places in the arena, a page apart.
    pub(crate) fn place(&mut self) -> u64 {
        ARENA + 0x1000 * self.within(0..=(ARENA_SIZE >> 12) - 1)
    }
}

/// The accesses. Sizes are in bytes.
impl Guest<'_> {
    /// Does what a line of qtest says; returns the answer after `OK`.
    fn ask(&mut self, line: &str) -> Result<String> {
        watch::step(line);
        let mut answer = Vec::new();
        let pc = self.pc();
        self.session.execute(&pc, line, &mut answer)?;
        drop(pc);
        let answer = String::from_utf8(answer)?;
        let value = answer.strip_prefix("OK").with_context(|| format!("{line}: {answer}"))?;
        if self.control.take_reset() {
            self.reset();
        }
        Ok(value.trim_start().to_owned())
    }

    fn ask_number(&mut self, line: &str) -> Result<u64> {
        let answer = self.ask(line)?;
        u64::from_str_radix(answer.trim_start_matches("0x"), 16).with_context(|| answer)
    }

    /// Reads a port.
    pub(crate) fn input(&mut self, port: u16, size: u8) -> Result<u32> {
        let value = self.ask_number(&format!("in{} {port:#x}", letter(size)))?;
        Ok(value as u32)
    }

    /// Writes a port.
    pub(crate) fn output(&mut self, port: u16, size: u8, value: u64) -> Result<()> {
        self.ask(&format!("out{} {port:#x} {:#x}", letter(size), value as u32)).map(drop)
    }

    /// Reads memory by one access.
    pub(crate) fn load(&mut self, addr: u64, size: u8) -> Result<u64> {
        self.ask_number(&format!("read{} {addr:#x}", letter(size)))
    }

    /// Writes memory by one access.
    pub(crate) fn store(&mut self, addr: u64, size: u8, value: u64) -> Result<()> {
        self.ask(&format!("write{} {addr:#x} {value:#x}", letter(size))).map(drop)
    }

    /// Writes a block of memory.
    pub(crate) fn write(&mut self, addr: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut line = format!("write {addr:#x} {:#x} 0x", bytes.len());
        for byte in bytes {
            let _ = write!(line, "{byte:02x}");
        }
        self.ask(&line).map(drop)
    }

    /// Fills a block of memory.
    pub(crate) fn fill(&mut self, addr: u64, len: u64, byte: u8) -> Result<()> {
        self.ask(&format!("memset {addr:#x} {len:#x} {byte:#x}")).map(drop)
    }

    /// Reads PCI configuration space.
    pub(crate) fn read_config(&mut self, devfn: u8, offset: u8, size: u8) -> Result<u32> {
        self.output(0xcf8, 4, config_address(devfn, offset))?;
        self.input(0xcfc + u16::from(offset & 3), size)
    }

    /// Writes PCI configuration space.
    pub(crate) fn write_config(
        &mut self,
        devfn: u8,
        offset: u8,
        size: u8,
        value: u64,
    ) -> Result<()> {
        self.output(0xcf8, 4, config_address(devfn, offset))?;
        self.output(0xcfc + u16::from(offset & 3), size, value)
    }

    /// Reads a port until all bits of `clear` in it are 0, or for a moment: devices work meanwhile.
    /// Returns what was read last.
    pub(crate) fn settled(&mut self, port: u16, clear: u32) -> Result<u32> {
        for _ in 0..200 {
            let value = self.input(port, 1)?;
            if value & clear == 0 {
                return Ok(value);
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        self.input(port, 1)
    }

    /// Lets time pass, in nanoseconds.
    pub(crate) fn wait(&mut self, ns: u64) -> Result<()> {
        self.ask(&format!("clock_step {ns}")).map(drop)
    }

    /// Any line, whatever its answer.
    pub(crate) fn say(&mut self, line: &str) {
        // Not all that is asked for is there.
        let _ = self.ask(line);
    }
}

fn letter(size: u8) -> char {
    match size {
        1 => 'b',
        2 => 'w',
        4 => 'l',
        _ => 'q',
    }
}

fn config_address(devfn: u8, offset: u8) -> u64 {
    0x8000_0000 | u64::from(devfn) << 8 | u64::from(offset & 0xfc)
}

/// The machine as a whole.
impl<'a> Guest<'a> {
    /// A guest on a new machine of the bench, which makes of `source` what it does.
    ///
    /// # Errors
    /// If the machine can't be made.
    pub(crate) fn new(bench: &'a Bench, source: Unstructured<'a>) -> Result<Self> {
        let control = Arc::new(Control::default());
        let pc = bench.machine(Arc::clone(&control))?;
        pc.reset_devices(ResetKind::Full);
        let session = Session::new(Arc::new(|_, _| {}));
        let pc = Some(pc);
        Ok(Self {
            bench,
            control,
            pc,
            session,
            source,
            functions: Vec::new(),
            saved: None,
            reach: Reach::default(),
        })
    }

    /// Does all that the source has.
    pub(crate) fn run(&mut self) -> Result<()> {
        self.find_functions()?;
        while !self.is_done() {
            match self.within(0..=99) {
                0 => {
                    self.reset();
                    self.find_functions()?;
                }
                1 => self.save_and_restore()?,
                2 => self.go_back_in_time()?,
                3 => self.restore_damaged(),
                4 => self.move_to_new_machine()?,
                5 => self.find_functions()?,
                _ => traffic::one(self)?,
            }
        }
        Ok(())
    }

    /// The machine.
    pub(crate) fn pc(&self) -> Arc<Pc> {
        Arc::clone(self.pc.as_ref().expect("the machine is being exchanged"))
    }

    fn reset(&mut self) {
        watch::step("# reset");
        self.pc().reset_devices(ResetKind::Full);
    }

    /// Stops the machine, which has to come to rest, for `change`.
    fn at_rest<T>(&mut self, what: &str, change: impl FnOnce(&[Arc<dyn Device>]) -> T) -> T {
        watch::step(&format!("# {what}"));
        let pc = self.pc();
        pc.pause_io();
        let result = change(pc.devices());
        pc.resume_io();
        result
    }

    fn save_and_restore(&mut self) -> Result<()> {
        let state = self.at_rest("save and restore", |devices| {
            let state = save(devices);
            restore(devices, &state)?;
            anyhow::Ok(state)
        })?;
        self.saved = Some(state);
        Ok(())
    }

    /// Restores what was saved earlier, while memory and disks have gone on.
    fn go_back_in_time(&mut self) -> Result<()> {
        let Some(state) = self.saved.take() else { return Ok(()) };
        self.at_rest("restore from earlier", |devices| restore(devices, &state))
    }

    /// Restores state that was damaged. What a device takes must do no harm.
    fn restore_damaged(&mut self) {
        let (index, at, bits): (u16, u16, u8) = self.any();
        self.at_rest("restore damaged state", |devices| {
            let device = &devices[usize::from(index) % devices.len()];
            let mut state = device.save();
            let len = state.data.len();
            if len > 0 {
                state.data[usize::from(at) % len] ^= bits;
            }
            // Refused or not: both are fine.
            let _ = device.restore(&state);
        });
    }

    /// Goes on in another machine, whose memory is new.
    fn move_to_new_machine(&mut self) -> Result<()> {
        let state = self.at_rest("move to a new machine", save);
        let now = self.pc().timers().clock().now_ns();
        self.note_reach();
        // Its images are locked as long as it lives.
        self.pc = None;
        let pc = self.bench.machine(Arc::clone(&self.control))?;
        pc.reset_devices(ResetKind::Full);
        pc.timers().clock().set(now);
        pc.pause_io();
        restore(pc.devices(), &state)?;
        pc.resume_io();
        self.pc = Some(pc);
        Ok(())
    }

    fn note_reach(&mut self) {
        for drive in self.pc().drives() {
            let stats = drive.stats();
            let (reads, writes) = self.reach.entry(drive.id().to_owned()).or_default();
            *reads += stats.rd_operations;
            *writes += stats.wr_operations;
        }
    }

    /// Ends the machine, which has to come to rest.
    pub(crate) fn end(mut self) -> Result<Reach> {
        self.at_rest("the end", |_| ());
        self.note_reach();
        let Self { pc, session, reach, .. } = self;
        drop(session);
        ensure!(pc.and_then(Arc::into_inner).is_some(), "somebody holds the machine");
        Ok(reach)
    }
}

fn save(devices: &[Arc<dyn Device>]) -> Vec<Saved> {
    devices.iter().map(|device| device.save()).collect()
}

fn restore(devices: &[Arc<dyn Device>], state: &[Saved]) -> Result<()> {
    for (device, state) in devices.iter().zip(state) {
        device.restore(state).with_context(|| format!("device {}", device.id()))?;
    }
    Ok(())
}
