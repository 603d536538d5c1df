//! The board: made in short steps from a [`MachineSpec`], reset and driven as [`Board`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use accel::log::Log;
use accel::{GuestClock, Signals, Vcpu};
use block::Drive;
use bus::{
    AddressSpace, Clock, Device, IrqLine, IrqSink, MachineControl, MsiSink, TimerQueue, WakeCause,
};
use chardev::CharBackend;
use cpu_x86::{Backdoor, Cpu, CpuConfig, CpuGroup, CpuWiring, Topology, Vendor};
use devices::ata::{Geometry, Translation};
use devices::fdc::DriveType;
use devices::fpu_error::FpuError;
use devices::fw_cfg::FwCfg;
use devices::hpet::{self, Hpet};
use devices::hyperv::{self, HyperV};
use devices::i440fx::I440fx;
use devices::i8042::{A20Gate, I8042, I8042Lines, Port92};
use devices::i8237::I8237;
use devices::i8254::I8254;
use devices::i8259::I8259;
use devices::ioapic::{self, IoApic};
use devices::irq::{IrqRouter, line};
use devices::lapic::{self, ApicBus, LocalApic};
use devices::mc146818::{Mc146818, Reference};
use devices::pci::PciBus;
use devices::piix::{Piix3, Piix4Pm, PmOptions};
use devices::uart16550::{COM_PORTS, Uart16550};
use devices::virtio::balloon::VirtioBalloon;
use devices::vmgenid::VmGenId;
use display::Console;
use input::InputHub;
use memory::{Change, GuestMemory, HostAdvice};

use super::bios::{self, BootOrder, RomFiles};
use super::bios_data;
use super::boot::{self, BootImages, Entry};
use super::cpu::{BoardClock, CpuView, SmiInput, TSC_HZ};
use super::devices::{Bus, Buses, LoadedImage};
use super::door::Door;
use super::firmware;
use super::graphics_mode::{self, Screen, Wish};
use super::icount::InstructionClock;
use super::layout::{self, Layout};
use super::messages::Messages;
use super::sleep::{self, SleepStates};
use super::text_mode;
use crate::BuildError;
use crate::acpi;
use crate::chardevs::Chardevs;
use crate::qtest::Tap;
use crate::run::{Board, ResetKind};
use crate::spec::{Accelerator, BoardSpec, Graphics, MachineSpec, SerialSpec, TranslationSpec};

/// The devices that every board has.
struct Chipset {
    host_bridge: Arc<I440fx>,
    pic: Arc<I8259>,
    apics: Arc<ApicBus>,
    ioapic: Arc<IoApic>,
    router: Arc<IrqRouter>,
    pm: Arc<Piix4Pm>,
    fpu_error: Arc<FpuError>,
    /// Where qtest listens to interrupt lines.
    taps: Vec<Arc<Tap>>,
}

/// A PC without its CPUs' threads.
pub struct Pc {
    pub(super) spec: Arc<MachineSpec>,
    pub(super) layout: Layout,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) ports: Arc<AddressSpace>,
    pub(super) mmio: Arc<AddressSpace>,
    pub(super) timers: TimerQueue,
    pub(super) pci: Arc<PciBus>,
    pub(super) control: Arc<dyn MachineControl>,
    pub(super) input: Arc<InputHub>,
    chipset: Chipset,
    signals: Vec<Arc<Signals>>,
    /// What the CPUs have in common: the A20 gate, and word of changes to the memory map.
    pub(super) cpu_group: Arc<CpuGroup>,
    clock: Arc<dyn GuestClock>,
    log: Arc<Log>,
    /// Every device, in the order in which they are reset.
    pub(super) devices: Vec<Arc<dyn Device>>,
    pub(super) balloon: Option<Arc<VirtioBalloon>>,
    pub(super) drives: Vec<Arc<Drive>>,
    /// What `bus=` can name.
    pub(super) buses: Buses,
    pub(super) consoles: Vec<Arc<Console>>,
    pub(super) chardevs: Chardevs,
    /// First port and interrupt line of each serial port.
    pub(super) serial_ports: Vec<(u16, u32)>,
    /// The same of each parallel port.
    pub(super) parallel_ports: Vec<(u16, u32)>,
    /// The DMA controllers of the ISA bus.
    pub(super) dma: Arc<I8237>,
    /// The floppy drives.
    pub(super) floppies: [Option<DriveType>; 2],
    /// The port of `pvpanic`.
    pub(super) pvpanic: Option<u16>,
    /// What `-device loader` puts into memory.
    pub(super) images: Vec<LoadedImage>,
    /// Where the commands of a test program come from.
    qtest: Option<Arc<dyn CharBackend>>,
    boot: Option<BootImages>,
    entry: std::sync::Mutex<Option<Entry>>,
    /// Where firmware and option ROMs are found.
    pub(super) rom_files: RomFiles,
    pub(super) fw_cfg: Arc<FwCfg>,
    pub(super) rtc: Arc<Mc146818>,
    pub(super) hpet: Option<Arc<Hpet>>,
    pub(super) vmgenid: Option<Arc<VmGenId>>,
    pub(super) boot_order: BootOrder,
    /// What Hyper-V's interface needs of the board, if the CPU model offers any of it.
    pub(super) hyperv: Option<Arc<HyperV>>,
    /// The disks of the IDE interface.
    pub(super) disk_geometry: [Option<(Geometry, Translation)>; 4],
    /// Which sleep states there are.
    pub(super) sleep: SleepStates,
    /// ACPI tables of the user's.
    custom_tables: Vec<Vec<u8>>,
    /// Whether the machine was started before.
    was_started: AtomicBool,
}

impl Pc {
    /// Makes the board with all its devices and opens what they need.
    ///
    /// # Errors
    /// Names what could not be made or opened.
    pub fn new(
        spec: &MachineSpec,
        control: Arc<dyn MachineControl>,
        log: Arc<Log>,
    ) -> Result<Self, BuildError> {
        let layout = Layout::with_low_memory(spec.memory, spec.board.max_low_memory);
        let memory = Arc::new(GuestMemory::new(&layout.ram())?);
        advise_host(&memory, &spec.board);
        if spec.board.lock_memory {
            lock_memory()?;
        }
        let cpu_group = Arc::new(CpuGroup::default());
        let group = Arc::clone(&cpu_group);
        memory.set_change_hook(move |change| match change {
            Change::Map => group.map_changed(),
            Change::Watch => group.watch_writes(),
        });
        let timers = match spec.accelerator {
            Accelerator::Soft if spec.icount.is_some() => {
                TimerQueue::without_thread(Clock::manual())
            }
            Accelerator::Soft => TimerQueue::new(Clock::new()).map_err(BuildError::Thread)?,
            Accelerator::Qtest => TimerQueue::without_thread(Clock::manual()),
        };
        let day = Arc::new(Reference::new(&spec.rtc, timers.clock()));
        let clock: Arc<dyn GuestClock> = Arc::new(BoardClock {
            clock: timers.clock().clone(),
            day: Arc::clone(&day),
            tsc_hz: spec.cpu.tsc_hz.unwrap_or(TSC_HZ),
        });
        let signals: Vec<_> = (0..spec.smp.cpus).map(|_| Arc::new(Signals::default())).collect();
        let (ports, mmio) = (Arc::new(AddressSpace::new()), Arc::new(AddressSpace::new()));
        let topology = topology(spec);
        let ids = (0..).map(|index| topology.apic_id(index));
        let apics = ApicBus::new(ids.zip(signals.iter().cloned()), &clock, &timers);
        let sleep = SleepStates::new(&spec.globals)?;
        let custom_tables = custom_tables(spec)?;
        let pm_options =
            PmOptions { smm: !spec.board.no_smm, hibernate_type: sleep.hibernate_type };
        let tapped = spec.qtest.is_some();
        let chipset = Chipset::new(apics, &ports, &timers, &control, pm_options, tapped)?;
        let pirqs = chipset.router.pirq_lines();
        let msi: Arc<dyn MsiSink> =
            Arc::new(Messages { apics: chipset.apics.clone(), memory: Arc::clone(&memory) });
        let pci = Arc::new(PciBus::new(ports.clone(), mmio.clone(), pirqs, Arc::clone(&msi)));
        let dma = I8237::new(Arc::clone(&memory));
        let mut chardevs = Chardevs::open(&spec.chardevs, &control)?;
        let qtest = spec.qtest.as_ref().map(|qtest| chardevs.claim(&qtest.chardev)).transpose()?;
        let boot = spec.boot.as_ref().map(BootImages::open).transpose()?;
        let hpet = (!spec.no_hpet).then(|| {
            let router = Arc::clone(&chipset.router);
            let lines = Box::new(move |line| router.isa_line(line));
            Hpet::new(&timers, lines, msi)
        });
        let rtc_line = match &hpet {
            Some(hpet) => IrqLine::new(hpet.clone(), hpet::RTC_INPUT),
            None => chipset.router.isa_line(line::RTC),
        };
        let rtc = Mc146818::new(day, &timers, rtc_line, control.clone());
        let fw_cfg = FwCfg::new(Arc::clone(&memory));
        let input = InputHub::new(&timers);
        let mut pc = Self {
            spec: Arc::new(spec.clone()),
            layout,
            memory,
            ports,
            mmio,
            timers,
            pci,
            control,
            input,
            chipset,
            signals,
            cpu_group,
            clock,
            log,
            devices: Vec::new(),
            balloon: None,
            drives: Vec::new(),
            buses: Buses::default(),
            consoles: Vec::new(),
            chardevs,
            serial_ports: Vec::new(),
            parallel_ports: Vec::new(),
            dma,
            floppies: [None; 2],
            pvpanic: None,
            images: Vec::new(),
            qtest,
            boot,
            entry: std::sync::Mutex::default(),
            rom_files: RomFiles::new(&spec.firmware.search),
            fw_cfg,
            rtc,
            hpet,
            vmgenid: None,
            boot_order: BootOrder::default(),
            hyperv: None,
            disk_geometry: [None; 4],
            sleep,
            custom_tables,
            was_started: AtomicBool::new(false),
        };
        pc.buses.add("pci.0", Bus::Pci);
        pc.buses.add("isa.0", Bus::Isa);
        pc.open_drives()?;
        pc.add_chipset()?;
        pc.add_hyperv()?;
        pc.add_fw_cfg()?;
        pc.add_usb()?;
        pc.add_serial_ports()?;
        pc.add_parallel_ports()?;
        let fdc = pc.add_floppy_controller()?;
        pc.add_ide()?;
        pc.add_devices()?;
        pc.floppies = fdc.drive_types();
        pc.fill_cmos();
        pc.add_option_roms()?;
        if bios::has_firmware(spec) {
            if let Some(images) = pc.boot.take() {
                pc.add_kernel(&images)?;
            }
        } else {
            // Kernels that can't be booted are refused now, not when the machine starts.
            pc.load_boot_images()?;
        }
        pc.fill_fw_cfg()?;
        Ok(pc)
    }

    /// The CPUs, in the state after power-on.
    pub fn make_cpus(&self) -> Vec<Cpu> {
        let model = Arc::new(self.spec.cpu.clone());
        let apics = self.chipset.apics.apics().iter();
        let wired = apics.zip(&self.signals).zip(self.apic_ids());
        let topology = topology(&self.spec);
        (0..)
            .zip(wired)
            .map(|(number, ((apic, signals), id))| {
                let config = CpuConfig { apic_id: id.into(), topology, model: Arc::clone(&model) };
                let view = self.cpu_view(apic);
                let mut cpu = Cpu::new(
                    config,
                    CpuWiring {
                        memory: Arc::clone(&self.memory),
                        bus: Arc::new(view),
                        interrupts: apic.clone(),
                        clock: Arc::clone(&self.clock),
                        signals: Arc::clone(signals),
                        group: Arc::clone(&self.cpu_group),
                    },
                );
                cpu.set_log(Arc::clone(&self.log));
                if self.spec.board.vmware_port {
                    cpu.set_backdoor(self.backdoor());
                }
                if let Some(hyperv) = &self.hyperv {
                    cpu.set_partition(hyperv.clone(), number);
                }
                if let Some(icount) = self.spec.icount {
                    let time = InstructionClock::new(icount, &self.timers, signals);
                    cpu.set_instruction_time(Arc::new(time));
                }
                let TranslationSpec { translate, buffer_mib, check } = self.spec.translation;
                let buffer = usize::from(buffer_mib) << 20;
                // A host that can't translate interprets.
                let mut how = cpu_x86::Translation { buffer, check, ..Default::default() };
                if check {
                    // What is run but a few times is to be compared as well.
                    how.threshold = 2;
                }
                cpu.set_translation(translate.then_some(how));
                cpu
            })
            .collect()
    }

    /// What VMware's backdoor tells of the machine.
    fn backdoor(&self) -> Backdoor {
        Backdoor {
            memory_mib: u32::try_from(self.spec.memory >> 20).unwrap_or(u32::MAX),
            uuid: self.spec.uuid.unwrap_or_default().into_bytes(),
        }
    }

    /// Which engine runs the CPUs.
    pub fn accelerator(&self) -> Accelerator {
        self.spec.accelerator
    }

    /// The timers of all devices.
    pub fn timers(&self) -> &TimerQueue {
        &self.timers
    }

    /// Where the commands of a test program come from.
    pub fn qtest_chardev(&self) -> Option<&Arc<dyn CharBackend>> {
        self.qtest.as_ref()
    }

    /// Where interrupt lines can be listened to; only with `-qtest`.
    pub fn taps(&self) -> &[Arc<Tap>] {
        &self.chipset.taps
    }

    /// The address spaces as CPU 0 sees them, for whoever is no CPU.
    pub fn door(&self) -> Door {
        Door {
            memory: Arc::clone(&self.memory),
            view: self.cpu_view(&self.chipset.apics.apics()[0]),
        }
    }

    fn cpu_view(&self, apic: &Arc<LocalApic>) -> CpuView {
        CpuView {
            ports: Arc::clone(&self.ports),
            mmio: Arc::clone(&self.mmio),
            apic: Arc::clone(apic),
            fpu_error: Arc::clone(&self.chipset.fpu_error),
            log: Arc::clone(&self.log),
        }
    }

    /// The APIC id of each CPU.
    pub(super) fn apic_ids(&self) -> Vec<u8> {
        let topology = topology(&self.spec);
        // 64 CPUs leave ids below 255 in any topology.
        (0..self.spec.smp.cpus).map(|index| topology.apic_id(index) as u8).collect()
    }

    /// The devices, in the order in which they are reset; no vCPUs.
    pub fn devices(&self) -> &[Arc<dyn Device>] {
        &self.devices
    }

    /// The drives, in the order of their options.
    pub fn drives(&self) -> &[Arc<Drive>] {
        &self.drives
    }

    /// The character devices.
    pub fn chardevs(&self) -> &Chardevs {
        &self.chardevs
    }

    /// The screens, in the order of their devices.
    pub fn consoles(&self) -> &[Arc<Console>] {
        &self.consoles
    }

    /// The way of the user's input to the devices.
    pub fn input(&self) -> &Arc<InputHub> {
        &self.input
    }

    /// The balloon, if there is one.
    pub fn balloon(&self) -> Option<&Arc<VirtioBalloon>> {
        self.balloon.as_ref()
    }

    /// Whether the guest can sleep with its memory kept.
    pub fn can_suspend(&self) -> bool {
        self.sleep.suspend && !self.spec.board.no_acpi
    }

    /// The device that tells the guest whether it is a copy, if there is one.
    pub fn vmgenid(&self) -> Option<&Arc<VmGenId>> {
        self.vmgenid.as_ref()
    }

    /// Forgets the ticks of the real-time clock that the guest had no time for.
    pub fn forget_missed_rtc_ticks(&self) {
        self.rtc.forget_missed_ticks();
    }

    fn add_chipset(&mut self) -> Result<(), BuildError> {
        let bios = self.load_bios()?;
        let chipset = &self.chipset;
        let host_bridge = Arc::clone(&chipset.host_bridge);
        host_bridge.connect_memory(&self.memory, bios)?;
        host_bridge.attach(&self.pci, &self.ports)?;
        let isa_bridge = Piix3::new(chipset.router.clone(), self.control.clone());
        isa_bridge.attach(&self.pci, &self.ports)?;
        if !self.spec.board.no_acpi {
            chipset.pm.attach(&self.pci, &self.ports)?;
        }
        // As on other boards of this kind, one CPU takes them for all.
        let boot_cpu = Arc::new(SmiInput(Arc::clone(&self.signals[0])));
        chipset.pm.connect_smi(IrqLine::new(boot_cpu, 0));
        let ioapic = chipset.ioapic.clone();
        self.mmio.map(ioapic::BASE, ioapic::MMIO_SIZE, ioapic.clone())?;
        let pit_line = match &self.hpet {
            Some(hpet) => {
                self.mmio.map(hpet::BASE, hpet::MMIO_SIZE, hpet.clone())?;
                self.devices.push(hpet.clone());
                IrqLine::new(hpet.clone(), hpet::PIT_INPUT)
            }
            None => chipset.router.isa_line(line::TIMER),
        };
        if !self.spec.board.no_pit {
            let pit = I8254::new(&self.timers, pit_line);
            pit.attach(&self.ports)?;
            self.devices.push(pit);
        }
        let rtc = self.rtc.clone();
        rtc.attach(&self.ports)?;
        let group = Arc::clone(&self.cpu_group);
        let a20 = A20Gate::new(move |open| group.set_a20(open));
        let lines = I8042Lines {
            keyboard: chipset.router.isa_line(line::KEYBOARD),
            mouse: chipset.router.isa_line(line::MOUSE),
        };
        let keyboard =
            I8042::new(lines, a20.clone(), self.control.clone(), &self.input, &self.timers);
        keyboard.attach(&self.ports)?;
        let port92 = Port92::new(a20, self.control.clone());
        port92.attach(&self.ports)?;
        let post = devices::debug::PostCode::new();
        post.attach(&self.ports)?;
        chipset.fpu_error.attach(&self.ports)?;
        self.devices.extend([
            host_bridge as Arc<dyn Device>,
            isa_bridge,
            chipset.pm.clone(),
            chipset.router.clone(),
            chipset.pic.clone(),
            ioapic,
            rtc,
            keyboard,
            port92,
            post,
            chipset.fpu_error.clone(),
        ]);
        let apics = self.chipset.apics.apics().iter();
        apics.clone().for_each(|apic| apic.connect_memory(&self.memory));
        self.devices.extend(apics.map(|apic| apic.clone() as Arc<dyn Device>));
        Ok(())
    }

    fn add_hyperv(&mut self) -> Result<(), BuildError> {
        let model = &self.spec.cpu;
        if model.hyperv.is_on() {
            let options = hyperv::Options {
                intel: model.vendor == Vendor::Intel,
                direct_timers: model.hyperv.has_direct_timers(),
                phys_bits: model.phys_bits,
            };
            let (memory, apics) = (&self.memory, &self.chipset.apics);
            let control = Arc::clone(&self.control);
            let device = HyperV::new(options, memory, apics, &self.clock, &self.timers, control)?;
            self.devices.push(device.clone());
            self.hyperv = Some(device);
        }
        Ok(())
    }

    /// A device's wire on ISA interrupt line `line`.
    pub(super) fn isa_line(&self, line: u32) -> IrqLine {
        self.chipset.router.isa_line(line)
    }

    fn add_serial_ports(&mut self) -> Result<(), BuildError> {
        let spec = Arc::clone(&self.spec);
        for (index, serial) in spec.serials.iter().enumerate() {
            let SerialSpec::Chardev(id) = serial else { continue };
            let Some(&port) = COM_PORTS.get(index) else {
                return Err(BuildError::Device(format!(
                    "-serial: a machine has at most {} serial ports",
                    COM_PORTS.len()
                )));
            };
            let backend = self.claim_chardev("-serial", id)?;
            self.add_serial_port(&format!("serial{index}"), port, com_line(index), backend)?;
        }
        Ok(())
    }

    /// The character device `id` for the device that `option` makes.
    ///
    /// # Errors
    /// Names the option, if there is none or somebody has it.
    pub(super) fn claim_chardev(
        &mut self,
        option: &str,
        id: &str,
    ) -> Result<Arc<dyn CharBackend>, BuildError> {
        self.chardevs.claim(id).map_err(|e| BuildError::Device(format!("{option}: {e}")))
    }

    pub(super) fn add_serial_port(
        &mut self,
        id: &str,
        port: u16,
        irq: u32,
        backend: Arc<dyn CharBackend>,
    ) -> Result<(), BuildError> {
        self.serial_ports.push((port, irq));
        let irq = self.chipset.router.isa_line(irq);
        let uart = Uart16550::new(id, port, &self.timers, irq, backend);
        uart.attach(&self.ports)?;
        self.devices.push(uart);
        Ok(())
    }

    /// Puts the boot images into memory and remembers where CPU 0 starts.
    fn load_boot_images(&self) -> Result<(), BuildError> {
        let Some(boot) = &self.boot else { return Ok(()) };
        let rsdp = self.write_tables()?;
        self.write_smbios()?;
        bios_data::write(&self.memory)?;
        let screen = |wish: Option<Wish>| {
            let door = self.door();
            if !text_mode::set(&door) {
                return Screen::None;
            }
            let Some(wish) = wish else { return Screen::Text };
            if let Some(mode) = graphics_mode::set(&door, &self.pci, wish) {
                return Screen::Graphics(mode);
            }
            // What the adapter did not take may have changed its registers.
            text_mode::set(&door);
            Screen::Text
        };
        let entry = boot.load(&self.memory, &self.layout, rsdp, &screen)?;
        *self.entry.lock().unwrap_or_else(|e| e.into_inner()) = Some(entry);
        Ok(())
    }

    /// Whether a kernel is entered without firmware; then the board does what firmware would do. With
    /// qtest, nothing runs that it would be done for.
    fn enters_kernel(&self) -> bool {
        !bios::has_firmware(&self.spec) && self.spec.accelerator != Accelerator::Qtest
    }

    /// Does for a CPU what firmware would do, and lets CPU 0 enter the kernel, or go on in it after a sleep,
    /// if there is no firmware.
    fn prepare_cpu(&self, index: usize, cpu: &mut Cpu, kind: ResetKind) {
        if !self.enters_kernel() {
            return;
        }
        if let Err(reason) = cpu.set_state(&firmware::cpu_state(index, cpu.state())) {
            eprintln!("rhea: cannot set CPU {index} up: {reason}");
        }
        if index == 0
            && kind == ResetKind::Wakeup
            && let Some(vector) = self.waking_vector()
        {
            if let Err(reason) = cpu.set_state(&sleep::at_waking_vector(cpu.state(), vector)) {
                eprintln!("rhea: cannot go on at waking vector {vector:#x}: {reason}");
            }
            return;
        }
        let entry = *self.entry.lock().unwrap_or_else(|e| e.into_inner());
        if let (0, Some(entry)) = (index, entry) {
            boot::enter(cpu, &entry);
        }
    }

    /// What the ACPI tables depend on, with the power management ports at `pm_base`.
    pub(super) fn acpi_config(&self, pm_base: u16) -> acpi::Config {
        let board = &self.spec.board;
        let (oem_id, oem_table_id) =
            acpi::licensee(&self.custom_tables).unwrap_or((acpi::OEM_ID, acpi::OEM_TABLE_ID));
        acpi::Config {
            oem_id: board.oem_id.unwrap_or(oem_id),
            oem_table_id: board.oem_table_id.unwrap_or(oem_table_id),
            apic_ids: self.apic_ids(),
            pci_hole: self.layout.pci_hole(),
            pci_hole_64: self.layout.pci_hole_64(),
            pm_base,
            hpet: self.hpet.is_some(),
            vmgenid: self.vmgenid.is_some(),
            sleep: self.sleep,
            vga: self.spec.graphics != Graphics::None,
            serial_ports: self.serial_ports.clone(),
            parallel_ports: self.parallel_ports.clone(),
            floppies: self.floppies,
            pvpanic: self.pvpanic,
            custom: self.custom_tables.clone(),
        }
    }

    /// Writes the ACPI tables, if there are any; returns where the root pointer is, or 0.
    fn write_tables(&self) -> Result<u64, BuildError> {
        if self.spec.board.no_acpi {
            return Ok(0);
        }
        let config = self.acpi_config(firmware::PM_BASE);
        let image = acpi::Image::new(&config);
        let tables = image.place(layout::ACPI_ROOT, layout::FIRMWARE_TABLES);
        for (addr, bytes) in &tables.blobs {
            let is_root = *addr == layout::ACPI_ROOT;
            let end = if is_root { layout::SMBIOS_TABLES } else { layout::ACPI_ROOT };
            if addr + bytes.len() as u64 > end {
                return Err(BuildError::Device(format!(
                    "-acpitable: {} bytes of tables do not fit below 1 MiB, where a machine without \
                     firmware has them; give -bios",
                    bytes.len()
                )));
            }
            self.memory.write(*addr, bytes)?;
        }
        Ok(tables.rsdp)
    }
}

/// Reads the ACPI tables that the user gives.
fn custom_tables(spec: &MachineSpec) -> Result<Vec<Vec<u8>>, BuildError> {
    let made = |(option, table): &(String, acpi::TableSpec)| {
        table.build().map_err(|reason| BuildError::Device(format!("{option}: {reason}")))
    };
    spec.firmware.acpi_tables.iter().map(made).collect()
}

/// Tells the host how the machine's memory is to be treated; it may know of no such thing.
fn advise_host(memory: &GuestMemory, board: &BoardSpec) {
    let wanted = [
        (board.no_core_dump, HostAdvice::NoCoreDump, "-machine dump-guest-core=off"),
        (board.merge_memory, HostAdvice::Mergeable, "-machine mem-merge=on"),
        (board.preallocate, HostAdvice::Preallocated, "-object prealloc=on"),
    ];
    for (_, advice, option) in wanted.into_iter().filter(|(wanted, ..)| *wanted) {
        if let Err(reason) = memory.advise(advice) {
            eprintln!("rhea: warning: {option}: {reason}");
        }
    }
}

/// Keeps all memory of this process, what it has and what it will have, in the host's RAM.
fn lock_memory() -> Result<(), BuildError> {
    use rustix::mm::{MlockAllFlags, mlockall};
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).map_err(|reason| {
        BuildError::Device(format!(
            "-overcommit mem-lock=on: the host does not lock memory: {reason}; raise its limit \
             (ulimit -l) or leave mem-lock off"
        ))
    })
}

fn topology(spec: &MachineSpec) -> Topology {
    Topology { cores: spec.smp.cores, threads: spec.smp.threads }
}

impl Chipset {
    fn new(
        apics: Arc<ApicBus>,
        ports: &Arc<AddressSpace>,
        timers: &TimerQueue,
        control: &Arc<dyn MachineControl>,
        pm_options: PmOptions,
        tapped: bool,
    ) -> Result<Self, BuildError> {
        let boot_apic = Arc::clone(&apics.apics()[0]);
        let pic = I8259::new(IrqLine::new(boot_apic.clone(), lapic::LINT0));
        pic.attach(ports)?;
        let external: Arc<dyn lapic::ExternalInterrupts> = pic.clone();
        boot_apic.connect_external(Arc::downgrade(&external));
        let ioapic = IoApic::new(apics.clone());
        let mut taps = Vec::new();
        let mut ioapic_inputs: Arc<dyn IrqSink> = ioapic.clone();
        if tapped {
            let tap = Tap::new("ioapic", ioapic_inputs, ioapic::PINS);
            ioapic_inputs = tap.clone();
            taps.push(tap);
        }
        let router = IrqRouter::new(pic.clone(), ioapic_inputs);
        let sci = router.isa_line(line::SCI);
        let pm = Piix4Pm::new(ports, timers, sci, control.clone(), pm_options);
        let fpu_error = FpuError::new(router.isa_line(line::FPU));
        let host_bridge = I440fx::new();
        Ok(Self { host_bridge, pic, apics, ioapic, router, pm, fpu_error, taps })
    }
}

impl Board for Pc {
    type Cpu = Cpu;

    fn reset_devices(&self, kind: ResetKind) {
        let wakes_up = kind == ResetKind::Wakeup;
        let host_bridge = Arc::as_ptr(&self.chipset.host_bridge);
        for device in &self.devices {
            // With the memory stays what of it is seen where: firmware goes on in its shadow RAM.
            if !(wakes_up && std::ptr::addr_eq(Arc::as_ptr(device), host_bridge)) {
                device.reset();
            }
        }
        self.describe_disks();
        self.set_boot_devices(!self.was_started.swap(true, Ordering::SeqCst));
        if !wakes_up {
            self.load_images();
        }
        if !self.enters_kernel() {
            return;
        }
        firmware::configure(&self.pci, &self.ports);
        if !wakes_up {
            firmware::install_smi_handler(&self.chipset.host_bridge);
        }
        // Without a place to go on at, the system starts again.
        if wakes_up && self.waking_vector().is_some() {
            return;
        }
        if let Err(e) = self.load_boot_images() {
            eprintln!("rhea: cannot load boot images again: {e}");
        }
    }

    fn reset_cpu(&self, index: usize, cpu: &mut Cpu, kind: ResetKind) {
        cpu.reset();
        self.prepare_cpu(index, cpu, kind);
        let Some(start) = self.start_of(index) else { return };
        let state = cpu_x86::CpuState { rip: start, ..cpu.state() };
        if let Err(reason) = cpu.set_state(&state) {
            eprintln!("rhea: CPU {index} cannot start at {start:#x}: {reason}");
        }
    }

    fn press_power_button(&self) {
        self.chipset.pm.press_power_button();
    }

    fn wakes_on(&self, cause: WakeCause) -> bool {
        self.chipset.pm.wakes_on(cause)
    }

    fn wake_up(&self, cause: WakeCause) {
        self.chipset.pm.wake_up(cause);
        // The reset code by which firmware knows what to go on with.
        const RESET_CODE: u8 = 0x0f;
        const RESUME: u8 = 0xfe;
        self.rtc.set_memory(RESET_CODE, RESUME);
    }

    fn inject_nmi(&self) {
        for apic in self.chipset.apics.apics() {
            apic.set_level(lapic::LINT1, true);
            apic.set_level(lapic::LINT1, false);
        }
    }

    fn pause_io(&self) {
        for device in &self.devices {
            device.pause();
        }
    }

    fn resume_io(&self) {
        for drive in &self.drives {
            drive.reset_io_status();
        }
        for device in &self.devices {
            device.resume();
        }
    }

    fn clock(&self) -> &Clock {
        self.timers.clock()
    }
}

/// The interrupt line of the serial port with this number, from 0: they take turns.
pub(super) const fn com_line(index: usize) -> u32 {
    if index.is_multiple_of(2) { line::COM1 } else { line::COM2 }
}
