//! PIIX4, function 3: ACPI power management, the SMI command port, and the SMBus.
//!
//! Follows Intel's 82371AB data sheet (290562), chapter 7, and ACPI 6.5, section 4.8. Sleep types are 0
//! for S5 (soft off), 1 for S3 (memory kept) and 2 for S4 (hibernation). A write to the SMI command port
//! switches ACPI mode on and off in hardware; other commands are for firmware's handler, by a system
//! management interrupt, once that has been enabled.

use std::sync::{Arc, Mutex, OnceLock, Weak};

use bus::{
    AddressSpace, BusDevice, Clock, Device, IrqLine, MachineControl, MapError, Notice,
    ShutdownCause, Timer, TimerQueue, WakeCause,
};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use super::reg;
use super::smbus::{self, Smbus};
use super::window::PortWindow;
use crate::isa::{PortDevice, map_ports};
use crate::lock;
use crate::pci::{self, ConfigSpace, ConfigState, Devfn, Identity, PciBus, PciFunction};

/// Number of power management ports.
const PM_PORTS: u16 = 0x40;
/// Registers among them.
const PM1_STATUS: u64 = 0x00;
const PM1_ENABLE: u64 = 0x02;
const PM1_CONTROL: u64 = 0x04;
const PM_TIMER: u64 = 0x08;
const GPE_STATUS: u64 = 0x0c;
const GPE_ENABLE: u64 = 0x0e;

/// PM1 status and enable.
const TIMER: u16 = 1 << 0;
const GLOBAL: u16 = 1 << 5;
const POWER_BUTTON: u16 = 1 << 8;
const RTC: u16 = 1 << 10;
const WAKE: u16 = 1 << 15;
const BUS_MASTER: u16 = 1 << 4;
const STATUS_BITS: u16 = TIMER | BUS_MASTER | GLOBAL | POWER_BUTTON | RTC | WAKE;
const ENABLE_BITS: u16 = TIMER | GLOBAL | POWER_BUTTON | RTC;

/// PM1 control.
const SCI_ENABLE: u16 = 1 << 0;
const SLEEP_TYPE: u16 = 7 << 10;
const SLEEP_TYPE_SHIFT: u32 = 10;
/// Sleep types: soft off (S5), memory kept (S3).
const SLEEP_TYPE_SOFT_OFF: u8 = 0;
const SLEEP_TYPE_SUSPEND: u8 = 1;
/// The sleep type of hibernation (S4), unless it is given another.
pub const SLEEP_TYPE_HIBERNATE: u8 = 2;
const SLEEP_ENABLE: u16 = 1 << 13;
const CONTROL_BITS: u16 = SCI_ENABLE | 1 << 1 | SLEEP_TYPE;

/// Frequency of the power management timer in Hz.
const TIMER_HZ: u64 = 3_579_545;
/// The timer has 24 bits; its status is set each time the highest changes.
const TIMER_MASK: u64 = 0x00ff_ffff;
const TIMER_HALF: u64 = 1 << 23;

/// The byte of device activity B that has the enable bit of interrupts by the SMI command port.
const SMI_ENABLE_BYTE: u16 = reg::ACTIVITY_B + 3;
const SMI_ENABLE: u8 = 1 << 1;

/// Where this board decodes the general purpose event registers, status and enable, besides their place
/// among the power management ports.
pub const GPE_PORT: u16 = 0xafe0;
/// How many bytes they are.
pub const GPE_PORTS: u8 = 4;

/// SMI command port; its data port follows.
const SMI_PORT: u16 = 0xb2;

/// The system management command that switches ACPI mode on; the FADT names it.
pub const ACPI_ENABLE: u8 = 0xf1;
/// The system management command that switches ACPI mode off.
pub const ACPI_DISABLE: u8 = 0xf0;

/// Where the SMBus controller is after a reset, on machines of this kind, and that it is there.
const SMBUS_PORT: u16 = 0xb100;
const SMBUS_HOST: u8 = 1 << 0;
const SMBUS_BY_IRQ_9: u8 = 4 << 1;

/// Registers that firmware writes and reads, and that nothing here depends on, with what is in them after a
/// reset: counters, and the monitors' activity and resources.
const KEPT: [(u16, &[u8]); 3] = [
    (0x44, &[0; 20]),
    (0x5c, &[0, 0, 0, 0x10, 0, 0, 0, 0x60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    (0x70, &[0; 16]),
];

const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    device: 0x7113,
    revision: 3,
    class: 0x06_80_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// The ACPI registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Acpi {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u16,
    gpe_enable: u16,
    /// Tick at which the timer's status is set next.
    overflow_at: u64,
    smi_command: u8,
    smi_data: u8,
}

impl Acpi {
    fn new(now: u64) -> Self {
        Self {
            status: 0,
            enable: 0,
            control: 0,
            gpe_status: 0,
            gpe_enable: 0,
            overflow_at: next_overflow(now),
            smi_command: 0,
            smi_data: 0,
        }
    }

    fn sync(&mut self, now: u64) {
        if now >= self.overflow_at {
            self.status |= TIMER;
            self.overflow_at = next_overflow(now);
        }
    }

    fn interrupts(&self) -> bool {
        let fixed = self.status & self.enable & ENABLE_BITS != 0;
        let general = self.gpe_status & self.gpe_enable != 0;
        self.control & SCI_ENABLE != 0 && (fixed || general)
    }
}

fn next_overflow(now: u64) -> u64 {
    (now / TIMER_HALF + 1).saturating_mul(TIMER_HALF)
}

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piix4PmState {
    config: ConfigState,
    acpi: Acpi,
    smbus: Smbus,
}

impl State for Piix4PmState {
    const NAME: &'static str = "piix4-pm";
    const VERSION: u32 = 2;

    fn validate(&self) -> Result<(), String> {
        let Acpi { status, enable, control, .. } = self.acpi;
        if status & !STATUS_BITS != 0 || enable & !ENABLE_BITS != 0 || control & !CONTROL_BITS != 0
        {
            return Err("a PM1 register has reserved bits set".into());
        }
        self.smbus.validate()
    }
}

struct Registers {
    config: ConfigSpace,
    acpi: Acpi,
    smbus: Smbus,
    pm_window: PortWindow,
    smbus_window: PortWindow,
}

/// The power management function.
pub struct Piix4Pm {
    sci: IrqLine,
    smi: OnceLock<IrqLine>,
    clock: Clock,
    timer: Timer,
    control: Arc<dyn MachineControl>,
    options: PmOptions,
    registers: Mutex<Registers>,
}

/// What can be chosen about the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmOptions {
    /// There is system management mode. Without it, firmware finds interrupts by the SMI command port
    /// enabled already, and none is ever raised.
    pub smm: bool,
    /// The sleep type of hibernation.
    pub hibernate_type: u8,
}

impl Default for PmOptions {
    fn default() -> Self {
        Self { smm: true, hibernate_type: SLEEP_TYPE_HIBERNATE }
    }
}

impl Piix4Pm {
    /// Place on the bus.
    pub const DEVFN: Devfn = Devfn::new(1, 3);

    /// A function whose ports appear in `ports`, that interrupts on `sci` and powers off by way of
    /// `control`.
    pub fn new(
        ports: &Arc<AddressSpace>,
        timers: &TimerQueue,
        sci: IrqLine,
        control: Arc<dyn MachineControl>,
        options: PmOptions,
    ) -> Arc<Self> {
        let clock = timers.clock().clone();
        let mut config = ConfigSpace::new(&IDENTITY, 1);
        config.define(
            pci::reg::STATUS,
            &(pci::reg::STATUS_DEVSEL_MEDIUM | pci::reg::STATUS_FAST_BACK_TO_BACK).to_le_bytes(),
        );
        config.define(reg::PM_BASE, &1u32.to_le_bytes());
        config.allow_writes(reg::PM_BASE, &0xffc0u32.to_le_bytes());
        config.allow_writes(reg::PM_ENABLE, &[1]);
        config.keep(&KEPT);
        config.allow_writes(reg::ACTIVITY_B, &[0xff; 4]);
        if !options.smm {
            config.define(SMI_ENABLE_BYTE, &[SMI_ENABLE]);
        }
        config.define(reg::SMBUS_BASE, &(u32::from(SMBUS_PORT) | 1).to_le_bytes());
        config.allow_writes(reg::SMBUS_BASE, &0xfff0u32.to_le_bytes());
        config.define(reg::SMBUS_ENABLE, &[SMBUS_HOST | SMBUS_BY_IRQ_9]);
        config.allow_writes(reg::SMBUS_ENABLE, &[0x0f]);
        Arc::new_cyclic(|this: &Weak<Self>| {
            let expiring = this.clone();
            let timer = timers.timer(move || {
                if let Some(pm) = expiring.upgrade() {
                    pm.refresh(&mut lock(&pm.registers));
                }
            });
            let window = |len, handler| PortWindow::new(Arc::downgrade(ports), len, handler);
            let pm_ports = Arc::new(PmPorts(this.clone()));
            let smbus_ports = Arc::new(SmbusPorts(this.clone()));
            let registers = Registers {
                config,
                acpi: Acpi::new(ticks_of(clock.now_ns())),
                smbus: Smbus::default(),
                pm_window: window(PM_PORTS, pm_ports),
                smbus_window: window(smbus::PORTS, smbus_ports),
            };
            Self {
                sci,
                smi: OnceLock::new(),
                clock,
                timer,
                control,
                options,
                registers: Mutex::new(registers),
            }
        })
    }

    /// Puts the function on `bus` and maps the SMI command port.
    ///
    /// # Errors
    /// Never in a space of 64 Ki ports.
    pub fn attach(self: &Arc<Self>, bus: &PciBus, ports: &AddressSpace) -> Result<(), MapError> {
        bus.attach(Self::DEVFN, self.clone());
        map_ports(ports, SMI_PORT, 2, self.clone())?;
        ports.map(GPE_PORT.into(), GPE_PORTS.into(), Arc::new(GpePorts(self.clone())))?;
        Ok(())
    }

    /// Tells the guest, once it runs again after a sleep, that it was woken up and by what. A user may as
    /// well have pressed the button.
    pub fn wake_up(&self, cause: WakeCause) {
        let source = match cause {
            WakeCause::Rtc => RTC,
            WakeCause::User => POWER_BUTTON,
        };
        lock(&self.registers).acpi.status |= WAKE | source;
    }

    /// Whether `cause` ends a sleep: the guest chooses whether the clock's alarm does.
    pub fn wakes_on(&self, cause: WakeCause) -> bool {
        match cause {
            WakeCause::Rtc => lock(&self.registers).acpi.enable & RTC != 0,
            WakeCause::User => true,
        }
    }

    /// The wire on which system management interrupts go to a CPU, as edges.
    pub fn connect_smi(&self, smi: IrqLine) {
        // Only the first call counts: the wiring is fixed.
        let _ = self.smi.set(smi);
    }

    /// Somebody pressed the power button: the guest is told if it listens.
    pub fn press_power_button(&self) {
        let mut registers = lock(&self.registers);
        registers.acpi.status |= POWER_BUTTON;
        self.refresh(&mut registers);
    }

    /// Brings the timer's status up to date, drives the SCI, and arms the timer for its next overflow
    /// if the guest wants to hear of it.
    fn refresh(&self, registers: &mut Registers) {
        let acpi = &mut registers.acpi;
        acpi.sync(ticks_of(self.clock.now_ns()));
        self.sci.set(acpi.interrupts());
        let wanted = acpi.enable & TIMER != 0 && acpi.status & TIMER == 0;
        if wanted { self.timer.arm(ns_of(acpi.overflow_at)) } else { self.timer.disarm() }
    }

    /// Opens and closes the windows as the configuration says.
    fn place_windows(registers: &mut Registers) {
        let config = &registers.config;
        let base = |base: u16, mask: u32, enable: u16| {
            let open = config.read(enable, 1) & 1 != 0;
            open.then(|| (config.read(base, 4) & mask) as u16)
        };
        let pm = base(reg::PM_BASE, 0xffc0, reg::PM_ENABLE);
        let smbus = base(reg::SMBUS_BASE, 0xfff0, reg::SMBUS_ENABLE);
        registers.pm_window.place(pm);
        registers.smbus_window.place(smbus);
    }

    fn read_pm(&self, offset: u64, size: u8) -> u64 {
        let mut registers = lock(&self.registers);
        let now = ticks_of(self.clock.now_ns());
        registers.acpi.sync(now);
        let acpi = &registers.acpi;
        let word = |at: u64| match at {
            PM1_STATUS => acpi.status,
            PM1_ENABLE => acpi.enable,
            PM1_CONTROL => acpi.control,
            PM_TIMER => (now & TIMER_MASK) as u16,
            0x0a => ((now & TIMER_MASK) >> 16) as u16,
            GPE_STATUS => acpi.gpe_status,
            GPE_ENABLE => acpi.gpe_enable,
            _ => 0,
        };
        let bytes = (0..u64::from(size.min(8))).map(|i| {
            let at = offset + i;
            (i * 8, u64::from(word(at & !1).to_le_bytes()[(at & 1) as usize]))
        });
        bytes.fold(0, |value, (shift, byte)| value | byte << shift)
    }

    fn write_pm(&self, offset: u64, size: u8, value: u64) {
        let mut registers = lock(&self.registers);
        let acpi = &mut registers.acpi;
        acpi.sync(ticks_of(self.clock.now_ns()));
        let mut sleep = None;
        // Register by register: a 32-bit write may cover status and enable.
        let mut at = offset & !1;
        while at < offset + u64::from(size.min(8)) {
            let (mut mask, mut word) = (0u16, 0u16);
            for byte in 0..2 {
                let Some(i) = (at + byte).checked_sub(offset).filter(|&i| i < size.into()) else {
                    continue;
                };
                mask |= 0xff << (byte * 8);
                word |= ((value >> (i * 8)) as u16 & 0xff) << (byte * 8);
            }
            sleep = write_word(acpi, at, word, mask).or(sleep);
            at += 2;
        }
        self.refresh(&mut registers);
        drop(registers);
        match sleep {
            Some(SLEEP_TYPE_SOFT_OFF) => {
                self.control.request_shutdown(ShutdownCause::GuestShutdown);
            }
            Some(SLEEP_TYPE_SUSPEND) => self.control.notify(Notice::Suspend),
            Some(kind) if kind == self.options.hibernate_type => {
                self.control.notify(Notice::Hibernate);
            }
            // The other sleep types are not in the tables and do nothing.
            _ => {}
        }
    }
}

/// Writes the bits `mask` of a PM register; tells which sleep type that starts, if any.
fn write_word(acpi: &mut Acpi, at: u64, word: u16, mask: u16) -> Option<u8> {
    let merge = |old: u16, writable: u16| old & !(mask & writable) | word & mask & writable;
    match at {
        PM1_STATUS => acpi.status &= !(word & mask),
        PM1_ENABLE => acpi.enable = merge(acpi.enable, ENABLE_BITS),
        PM1_CONTROL => {
            acpi.control = merge(acpi.control, CONTROL_BITS);
            let kind = (acpi.control & SLEEP_TYPE) >> SLEEP_TYPE_SHIFT;
            return (word & mask & SLEEP_ENABLE != 0).then_some(kind as u8);
        }
        GPE_STATUS => acpi.gpe_status &= !(word & mask),
        GPE_ENABLE => acpi.gpe_enable = merge(acpi.gpe_enable, u16::MAX),
        _ => {}
    }
    None
}

fn ticks_of(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(TIMER_HZ) / 1_000_000_000) as u64
}

fn ns_of(ticks: u64) -> u64 {
    let ns = (u128::from(ticks) * 1_000_000_000).div_ceil(u128::from(TIMER_HZ));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// The power management ports, wherever they are.
struct PmPorts(Weak<Piix4Pm>);

impl BusDevice for PmPorts {
    fn read(&self, offset: u64, size: u8) -> u64 {
        self.0.upgrade().map_or(u64::MAX, |pm| pm.read_pm(offset, size))
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        if let Some(pm) = self.0.upgrade() {
            pm.write_pm(offset, size, value);
        }
    }
}

/// The general purpose event registers in a place of their own.
struct GpePorts(Arc<Piix4Pm>);

impl BusDevice for GpePorts {
    fn read(&self, offset: u64, size: u8) -> u64 {
        self.0.read_pm(GPE_STATUS + offset, size)
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        self.0.write_pm(GPE_STATUS + offset, size, value);
    }
}

/// The SMBus ports, wherever they are.
struct SmbusPorts(Weak<Piix4Pm>);

impl BusDevice for SmbusPorts {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        self.0.upgrade().map_or(0xff, |pm| lock(&pm.registers).smbus.read(offset).into())
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        if let Some(pm) = self.0.upgrade() {
            lock(&pm.registers).smbus.write(offset, value as u8);
        }
    }
}

/// The SMI command and data ports.
impl PortDevice for Piix4Pm {
    fn read_port(&self, port: u16) -> u8 {
        let registers = lock(&self.registers);
        if port == SMI_PORT { registers.acpi.smi_command } else { registers.acpi.smi_data }
    }

    fn write_port(&self, port: u16, value: u8) {
        let mut registers = lock(&self.registers);
        let acpi = &mut registers.acpi;
        if port != SMI_PORT {
            acpi.smi_data = value;
            return;
        }
        acpi.smi_command = value;
        match value {
            ACPI_ENABLE => acpi.control |= SCI_ENABLE,
            ACPI_DISABLE => acpi.control &= !SCI_ENABLE,
            _ if self.options.smm
                && registers.config.read(SMI_ENABLE_BYTE, 1) as u8 & SMI_ENABLE != 0 =>
            {
                if let Some(smi) = self.smi.get() {
                    smi.set(true);
                    smi.set(false);
                }
            }
            _ => {}
        }
        self.refresh(&mut registers);
    }
}

impl PciFunction for Piix4Pm {
    fn read_config(&self, offset: u16, size: u8) -> u32 {
        lock(&self.registers).config.read(offset, size)
    }

    fn write_config(&self, offset: u16, size: u8, value: u32) {
        let mut registers = lock(&self.registers);
        registers.config.write(offset, size, value);
        Self::place_windows(&mut registers);
    }
}

impl Device for Piix4Pm {
    fn id(&self) -> String {
        "piix4-pm".into()
    }

    fn reset(&self) {
        let mut registers = lock(&self.registers);
        registers.config.reset();
        registers.acpi = Acpi::new(ticks_of(self.clock.now_ns()));
        registers.smbus = Smbus::default();
        Self::place_windows(&mut registers);
        self.refresh(&mut registers);
    }

    fn save(&self) -> Saved {
        let mut registers = lock(&self.registers);
        registers.acpi.sync(ticks_of(self.clock.now_ns()));
        Saved::new(&Piix4PmState {
            config: registers.config.save(),
            acpi: registers.acpi.clone(),
            smbus: registers.smbus.clone(),
        })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: Piix4PmState = saved.decode()?;
        let mut registers = lock(&self.registers);
        registers
            .config
            .check(&state.config)
            .map_err(|reason| RestoreError::Damaged { name: Piix4PmState::NAME, reason })?;
        registers.config.restore(&state.config);
        registers.acpi = state.acpi;
        registers.smbus = state.smbus;
        Self::place_windows(&mut registers);
        self.refresh(&mut registers);
        Ok(())
    }
}
