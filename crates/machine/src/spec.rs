//! What a machine is made from, after the command line was read and before anything is opened.
//!
//! Plain data: crate `cli` fills it from options, tests write it directly.

use std::path::PathBuf;

use chardev::ChardevSpec;
use serde_json::{Map, Value};
use uuid::Uuid;

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
    /// CPUs present at start, 1 to 8.
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

/// A serial port's other end.
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

/// A disk image and how to use it (`-drive`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveSpec {
    /// Unique among drives; what `-device drive=` names.
    pub id: String,
    /// The image; `None` for an empty drive.
    pub file: Option<PathBuf>,
    /// Interface of the device that is made along with the drive, unless `none`.
    pub interface: DriveInterface,
    /// Options beyond those (format, cache, readonly, ...), as given.
    pub options: Map<String, Value>,
}

/// `-drive if=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriveInterface {
    /// A device names the drive.
    None,
    /// A virtio-blk-pci device of its own.
    #[default]
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
    /// Engine.
    pub accelerator: Accelerator,
    /// Direct boot.
    pub boot: Option<DirectBoot>,
    /// Character devices.
    pub chardevs: Vec<NamedChardev>,
    /// Serial ports COM1 to COM4, in order.
    pub serials: Vec<SerialSpec>,
    /// The chipset's USB host controller is there (`-usb`, `-machine usb=on`).
    pub usb: bool,
    /// Disk images.
    pub drives: Vec<DriveSpec>,
    /// Devices.
    pub devices: Vec<DeviceSpec>,
    /// What happens on the guest's own ends.
    pub actions: RunActions,
    /// Commands of a test program.
    pub qtest: Option<QtestSpec>,
    /// Leave the machine in `prelaunch` (`-S`).
    pub start_paused: bool,
}
