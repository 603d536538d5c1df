//! What a machine is made from, after the command line was read and before anything is opened.
//!
//! Plain data: crate `cli` fills it from options, tests write it directly.

use std::path::PathBuf;

use chardev::ChardevSpec;
pub use cpu_x86::{CpuModel, ModelError};
use devices::mc146818::RtcConfig;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::acpi::TableSpec;
use crate::smbios::SmbiosSpec;

/// How guest time goes by instructions (`-icount`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcountSpec {
    /// An instruction takes 2^shift nanoseconds; 0 to 10.
    pub shift: u32,
    /// While the CPU is halted time passes as on the host; otherwise the next timer comes at once.
    pub sleep: bool,
}

/// How the software CPU works (`-accel soft,...`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TranslationSpec {
    /// Translate code for the host; otherwise, and where the host can't, it is interpreted.
    pub translate: bool,
    /// MiB of translated code that each CPU keeps.
    pub buffer_mib: u16,
    /// Have the interpreter run each translated block, too, and stop where the two differ.
    pub check: bool,
}

impl TranslationSpec {
    /// Whether this host can translate.
    pub fn is_possible() -> bool {
        cpu_x86::Translation::is_possible()
    }
}

impl Default for TranslationSpec {
    fn default() -> Self {
        Self { translate: true, buffer_mib: 128, check: false }
    }
}

/// Which engine runs the vCPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accelerator {
    /// The software CPU (`tcg`, `soft`).
    #[default]
    Soft,
    /// None: the CPUs stand still, and qtest drives the devices and the guest's clock.
    Qtest,
}

/// The way in for a test program (`-qtest`, `-qtest-log`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QtestSpec {
    /// Id of the character device that the commands come from.
    pub chardev: String,
    /// Where to record them.
    pub log: QtestLogSpec,
}

/// Where qtest's commands and answers are recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum QtestLogSpec {
    /// On standard error.
    #[default]
    Stderr,
    /// Nowhere.
    None,
    /// In a file.
    File(PathBuf),
}

/// What the guest's reboot does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RebootAction {
    /// Reset the machine.
    #[default]
    Reset,
    /// Shut it down.
    Shutdown,
}

/// What the guest's power-off does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShutdownAction {
    /// End the process.
    #[default]
    Poweroff,
    /// Stop the machine and stay.
    Pause,
}

/// What a panic of the guest does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PanicAction {
    /// Only report it.
    None,
    /// Stop the machine and stay.
    Pause,
    /// Shut down.
    #[default]
    Shutdown,
    /// Shut down with exit status 1.
    ExitFailure,
}

/// What an expired watchdog does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WatchdogAction {
    /// Reset the machine.
    #[default]
    Reset,
    /// Ask the guest to shut down.
    Shutdown,
    /// End the process.
    Poweroff,
    /// Stop the machine and stay.
    Pause,
    /// Only report it.
    Debug,
    /// Nothing.
    None,
    /// Inject an NMI.
    InjectNmi,
}

/// What happens on the guest's own ends (`-action`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunActions {
    /// On reboot.
    pub reboot: RebootAction,
    /// On power-off.
    pub shutdown: ShutdownAction,
    /// On panic.
    pub panic: PanicAction,
    /// On watchdog expiry.
    pub watchdog: WatchdogAction,
}

/// Processors (`-smp`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smp {
    /// CPUs present at start, 1 to 64.
    pub cpus: u32,
    /// Sockets.
    pub sockets: u32,
    /// Cores a socket.
    pub cores: u32,
    /// Threads a core.
    pub threads: u32,
}

impl Default for Smp {
    fn default() -> Self {
        Self { cpus: 1, sockets: 1, cores: 1, threads: 1 }
    }
}

/// What to boot without firmware (`-kernel`, `-initrd`, `-append`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectBoot {
    /// bzImage or PVH ELF.
    pub kernel: BootImage,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub command_line: String,
}

/// Where a boot image's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootImage {
    /// In a file.
    File(PathBuf),
    /// In this program, under a name for messages.
    Embedded(&'static str, &'static [u8]),
}

impl Default for BootImage {
    fn default() -> Self {
        Self::File(PathBuf::new())
    }
}

/// Properties of the board (`-machine`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BoardSpec {
    /// Leave out ACPI: the power management function and the tables.
    pub no_acpi: bool,
    /// Leave out the 8254 timer, and with it the speaker's port.
    pub no_pit: bool,
    /// VMware's backdoor port is there.
    pub vmware_port: bool,
    /// Leave out system management mode.
    pub no_smm: bool,
    /// Drives that are flash memory, by their ids: where CPUs start, and the one below.
    pub flash: [Option<String>; 2],
    /// The most flash memory in bytes, if not as usual.
    pub max_firmware: Option<u64>,
    /// RAM from here on goes above 4 GiB, in bytes, if not as usual.
    pub max_low_memory: Option<u64>,
    /// Guest memory is not part of the process's core dumps.
    pub no_core_dump: bool,
    /// Guest memory may be shared with pages of other processes that are equal (KSM).
    pub merge_memory: bool,
    /// All memory of the process stays in the host's RAM.
    pub lock_memory: bool,
    /// Have the host make all pages of memory at once.
    pub preallocate: bool,
    /// Who made the ACPI tables, if not us: 6 bytes.
    pub oem_id: Option<[u8; 6]>,
    /// The ACPI tables' id, if not ours: 8 bytes.
    pub oem_table_id: Option<[u8; 8]>,
}

/// Firmware, and what it is told (`-bios`, `-L`, `-boot`, `-fw_cfg`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FirmwareSpec {
    /// The BIOS's file; without one, SeaBIOS, unless a kernel is booted directly.
    pub bios: Option<String>,
    /// Directories where firmware is looked for before the usual ones.
    pub search: Vec<PathBuf>,
    /// What to boot from.
    pub boot: BootSpec,
    /// Items of the user's own.
    pub items: Vec<FwCfgItem>,
    /// ROMs that firmware runs before it boots.
    pub option_roms: Vec<OptionRomSpec>,
    /// ACPI tables (`-acpitable`), each with its option for messages.
    pub acpi_tables: Vec<(String, TableSpec)>,
}

/// A ROM that firmware runs (`-option-rom`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OptionRomSpec {
    /// Its file, looked for as firmware is.
    pub file: String,
    /// Its place in the boot order, if it is something to boot from.
    pub boot_index: Option<u32>,
}

/// What firmware boots from (`-boot`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootSpec {
    /// Letters: `a` floppy, `c` disk, `d` CD-ROM, `n` network; at most three.
    pub order: Option<String>,
    /// The same for the first boot only.
    pub once: Option<String>,
    /// Whether the user may choose.
    pub menu: Option<bool>,
    /// A picture to show meanwhile, JPEG or BMP.
    pub splash: Option<PathBuf>,
    /// How long to wait for the user, in milliseconds.
    pub splash_time: Option<u16>,
    /// When to start again if nothing could be booted, in milliseconds; never without.
    pub reboot_timeout: Option<u16>,
    /// Try nothing but what has a `bootindex`.
    pub strict: bool,
    /// Boot from a floppy disk even if it does not say that it can be.
    pub no_floppy_check: bool,
}

/// An item for firmware and guest (`-fw_cfg`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FwCfgItem {
    /// The file's name.
    pub name: String,
    /// What is in it.
    pub value: FwCfgValue,
}

/// Contents of a [`FwCfgItem`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FwCfgValue {
    /// This text.
    Text(String),
    /// This file's contents.
    File(PathBuf),
}

/// A value for all devices of a kind that are given no other (`-global`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobalSpec {
    /// The kind.
    pub driver: String,
    /// The property.
    pub property: String,
    /// The value.
    pub value: String,
}

/// The other end of a serial or parallel port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialSpec {
    /// No port.
    None,
    /// Connected to the character device of this id.
    Chardev(String),
}

/// A character device with its id.
#[derive(Clone, Debug)]
pub struct NamedChardev {
    /// Unique among character devices.
    pub id: String,
    /// What it is.
    pub spec: ChardevSpec,
}

/// The machine type's name, and its shorter one.
pub const MACHINE_TYPE: &str = "pc-i440fx-7.2";
/// See [`MACHINE_TYPE`].
pub const MACHINE_ALIAS: &str = "pc";
/// Most CPUs of a machine.
pub const MAX_CPUS: u32 = 64;

/// A drive, with an image in it or without (`-drive`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DriveSpec {
    /// Unique among drives; what `-device drive=` names.
    pub id: String,
    /// The image; `None` for an empty drive.
    pub file: Option<PathBuf>,
    /// What the drive is connected to.
    pub interface: DriveInterface,
    /// Which of several, for interfaces whose buses hold a number of units; else 0.
    pub bus: u32,
    /// Place on the bus.
    pub unit: u32,
    /// It is for CDs and DVDs.
    pub is_cdrom: bool,
    /// Nobody asked for it.
    pub is_default: bool,
    /// The option that it comes from, for messages.
    pub origin: String,
    /// Options beyond those (format, cache, readonly, ...), as given.
    pub options: Map<String, Value>,
}

/// `-drive if=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriveInterface {
    /// A device names the drive.
    None,
    /// The IDE controller's, with a disk or CD-ROM drive of its own.
    #[default]
    Ide,
    /// A virtio-scsi-pci adapter's of its own, one for each bus.
    Scsi,
    /// The floppy controller's.
    Floppy,
    /// Flash memory that firmware is in.
    Pflash,
    /// Flash memory of other machines.
    Mtd,
    /// SD cards of other machines.
    Sd,
    /// A virtio-blk-pci device of its own.
    Virtio,
    /// Xen's.
    Xen,
}

impl DriveInterface {
    /// Its name in `if=`.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Ide => "ide",
            Self::Scsi => "scsi",
            Self::Floppy => "floppy",
            Self::Pflash => "pflash",
            Self::Mtd => "mtd",
            Self::Sd => "sd",
            Self::Virtio => "virtio",
            Self::Xen => "xen",
        }
    }

    /// Units that a bus holds, which indices are counted in; `None` if there is one bus for all.
    pub fn units(self) -> Option<u32> {
        match self {
            Self::Ide => Some(2),
            Self::Scsi => Some(7),
            _ => None,
        }
    }
}

/// The graphics adapter that a machine has besides those of `-device` (`-vga`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Graphics {
    /// None.
    #[default]
    None,
    /// VGA with the Bochs VBE extensions.
    Std,
    /// A virtio adapter with a VGA.
    Virtio,
}

/// A device with its properties (`-device`).
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceSpec {
    /// Name of the kind, as in `virtio-blk-pci`.
    pub driver: String,
    /// Unique among devices, if given.
    pub id: Option<String>,
    /// Properties as given: strings from `key=value`, any JSON type from JSON.
    pub properties: Map<String, Value>,
}

/// Everything about one machine.
#[derive(Clone, Debug, Default)]
pub struct MachineSpec {
    /// Name (`-name`).
    pub name: Option<String>,
    /// UUID (`-uuid`).
    pub uuid: Option<Uuid>,
    /// RAM in bytes.
    pub memory: u64,
    /// Processors.
    pub smp: Smp,
    /// What kind of processors (`-cpu`).
    pub cpu: CpuModel,
    /// Properties of the board.
    pub board: BoardSpec,
    /// Engine.
    pub accelerator: Accelerator,
    /// How the software CPU works.
    pub translation: TranslationSpec,
    /// Time goes by instructions.
    pub icount: Option<IcountSpec>,
    /// Direct boot.
    pub boot: Option<DirectBoot>,
    /// Firmware.
    pub firmware: FirmwareSpec,
    /// What the SMBIOS tables say.
    pub smbios: SmbiosSpec,
    /// The console is a serial port (`-nographic`).
    pub no_graphic: bool,
    /// Properties for devices of a kind.
    pub globals: Vec<GlobalSpec>,
    /// Character devices.
    pub chardevs: Vec<NamedChardev>,
    /// Serial ports COM1 to COM4, in order.
    pub serials: Vec<SerialSpec>,
    /// Parallel ports LPT1 to LPT3, in order.
    pub parallels: Vec<SerialSpec>,
    /// The real-time clock (`-rtc`).
    pub rtc: RtcConfig,
    /// Leave out the HPET (`-machine hpet=off`, `-no-hpet`).
    pub no_hpet: bool,
    /// The chipset's USB host controller is there (`-usb`, `-machine usb=on`).
    pub usb: bool,
    /// Disk images.
    pub drives: Vec<DriveSpec>,
    /// The graphics adapter.
    pub graphics: Graphics,
    /// Devices.
    pub devices: Vec<DeviceSpec>,
    /// What happens on the guest's own ends.
    pub actions: RunActions,
    /// Commands of a test program.
    pub qtest: Option<QtestSpec>,
    /// Leave the machine in `prelaunch` (`-S`).
    pub start_paused: bool,
}
