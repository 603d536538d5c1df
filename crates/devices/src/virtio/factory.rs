//! Makes virtio devices from the properties of `-device`.

use std::sync::Arc;
use std::time::Duration;

use block::{Drive, OnError};
use bus::TimerQueue;
use memory::GuestMemory;

use super::balloon::VirtioBalloon;
use super::blk::{BlkError, BlkOptions, VirtioBlk};
use super::rng::{RngLimit, VirtioRng};
use super::{TransportError, VirtioDevice, VirtioPci, VirtioPciOptions};
use crate::pci::{Devfn, PciBus, SlotError};
use crate::properties::{Properties, PropertyError};

/// The kinds that can be made.
pub const DRIVERS: [&str; 3] = ["virtio-balloon-pci", "virtio-blk-pci", "virtio-rng-pci"];

/// Name of the only PCI bus.
const BUS: &str = "pci.0";

/// What devices are made from.
pub struct Parts<'a> {
    /// Where they are plugged in.
    pub bus: &'a PciBus,
    /// Guest memory.
    pub memory: &'a Arc<GuestMemory>,
    /// Bytes of memory that the machine was given.
    pub ram_size: u64,
    /// Guest time.
    pub timers: &'a TimerQueue,
    /// Finds a drive by its id.
    pub drive: &'a dyn Fn(&str) -> Option<Arc<Drive>>,
}

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// A property is bad.
    #[error(transparent)]
    Property(#[from] PropertyError),
    /// There is no place for it.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The disk can't be had.
    #[error(transparent)]
    Blk(#[from] BlkError),
    /// The function can't be made.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// What a device is, beyond its function.
#[derive(Clone)]
pub enum Backing {
    /// A disk.
    Blk(Arc<VirtioBlk>),
    /// A balloon.
    Balloon(Arc<VirtioBalloon>),
    /// A source of randomness.
    Rng,
}

/// A device on its bus.
pub struct Created {
    /// The function.
    pub function: Arc<VirtioPci>,
    /// Where it sits.
    pub devfn: Devfn,
    /// What it is.
    pub backing: Backing,
    /// Its place in the order of boot devices (`bootindex=`), if it has one.
    pub bootindex: Option<u64>,
}

/// Which device a name stands for, and whether it fixes the interface.
fn split_name(driver: &str) -> (&str, Option<bool>) {
    if let Some(base) = driver.strip_suffix("-pci-non-transitional") {
        (base, Some(true))
    } else if let Some(base) = driver.strip_suffix("-pci-transitional") {
        (base, Some(false))
    } else {
        (driver.strip_suffix("-pci").unwrap_or(driver), None)
    }
}

/// Whether `driver` names a kind that [`create`] makes: one of [`DRIVERS`], with or without `-pci`, or
/// with `-transitional` or `-non-transitional` behind it.
pub fn knows(driver: &str) -> bool {
    matches!(split_name(driver).0, "virtio-blk" | "virtio-balloon" | "virtio-rng")
}

/// Makes a device of kind `driver` and plugs it in. `id` is unique among devices; `path` is what
/// queries show of the device that has a drive.
///
/// # Errors
/// If the kind is not known, a property is bad, or a resource can't be had. Nothing is then plugged in.
pub fn create(
    id: &str,
    path: &str,
    mut properties: Properties,
    parts: &Parts<'_>,
) -> Result<Created, CreateError> {
    let driver = properties.driver().to_owned();
    let (kind, non_transitional) = split_name(&driver);
    let wanted = place(&driver, &mut properties)?;
    let options = VirtioPciOptions {
        id: id.to_owned(),
        disable_legacy: match non_transitional {
            Some(modern_only) => modern_only,
            None => properties.switch_or_auto("disable-legacy")?.unwrap_or(false),
        },
        disable_modern: match non_transitional {
            Some(_) => false,
            None => properties.switch("disable-modern")?.unwrap_or(false),
        },
        vectors: vectors(&mut properties)?,
    };
    let bootindex = match kind {
        "virtio-blk" => properties.number("bootindex", i32::MAX as u64, "int32_t")?,
        _ => None,
    };
    let (device, backing): (Arc<dyn VirtioDevice>, Backing) = match kind {
        "virtio-blk" => {
            let blk = blk(path, properties, parts)?;
            (blk.clone(), Backing::Blk(blk))
        }
        "virtio-balloon" => {
            let balloon = balloon(properties, parts)?;
            (balloon.clone(), Backing::Balloon(balloon))
        }
        "virtio-rng" => (rng(properties, parts)?, Backing::Rng),
        _ => {
            let text = format!("'{driver}' is not a valid device model name");
            return Err(PropertyError::new(text).into());
        }
    };
    let devfn = parts.bus.reserve(wanted, &driver)?;
    let wiring = parts.bus.wiring(devfn, 1);
    let function = VirtioPci::new(device, options, wiring, Arc::clone(parts.memory))
        .inspect_err(|_| parts.bus.release(devfn))?;
    parts.bus.attach(devfn, function.clone());
    Ok(Created { function, devfn, backing, bootindex })
}

/// Takes the properties that say where the device goes.
fn place(driver: &str, properties: &mut Properties) -> Result<Option<Devfn>, PropertyError> {
    if let Some(bus) = properties.string("bus")? {
        if bus != BUS && bus != "pci" {
            return Err(PropertyError::new(format!("Bus '{bus}' not found")));
        }
    }
    let Some(addr) = properties.string("addr")? else { return Ok(None) };
    let devfn = addr.parse().map(Some);
    devfn.map_err(|_| {
        PropertyError::new(format!("Property '{driver}.addr' doesn't take value '{addr}'"))
    })
}

fn vectors(properties: &mut Properties) -> Result<Option<u16>, PropertyError> {
    let given = properties.number("vectors", u32::MAX.into(), "uint32_t")?;
    match given.filter(|&vectors| vectors != u64::from(u32::MAX)) {
        None => Ok(None),
        Some(vectors) => u16::try_from(vectors).map(Some).map_err(|_| {
            PropertyError::new(format!("vectors={vectors} is out of range; the most is 2048"))
        }),
    }
}

fn blk(
    path: &str,
    mut properties: Properties,
    parts: &Parts<'_>,
) -> Result<Arc<VirtioBlk>, CreateError> {
    let p = &mut properties;
    let small = |value: Option<u64>, default: u16| {
        value.map_or(default, |value| u16::try_from(value).unwrap_or(u16::MAX))
    };
    let block_size = |value: Option<u64>| match value {
        None | Some(0) => 512,
        Some(size) => u32::try_from(size).unwrap_or(u32::MAX),
    };
    let drive_id = p.string("drive")?;
    let options = BlkOptions {
        serial: p.string("serial")?.unwrap_or_default(),
        logical_block_size: block_size(p.size("logical_block_size")?),
        physical_block_size: block_size(p.size("physical_block_size")?),
        num_queues: small(p.number("num-queues", u16::MAX.into(), "uint16_t")?, 1),
        queue_size: small(p.number("queue-size", u16::MAX.into(), "uint16_t")?, 256),
        discard: p.switch("discard")?.unwrap_or(true),
        write_zeroes: p.switch("write-zeroes")?.unwrap_or(true),
        share_rw: p.switch("share-rw")?.unwrap_or(false),
    };
    let write_cache = p.switch_or_auto("write-cache")?;
    let rerror = error_policy(p, "rerror")?;
    let werror = error_policy(p, "werror")?;
    properties.finish()?;
    let drive_id = drive_id.ok_or_else(|| PropertyError::new("drive property not set"))?;
    let drive = (parts.drive)(&drive_id).ok_or_else(|| {
        let text = format!("Property 'virtio-blk-device.drive' can't find value '{drive_id}'");
        PropertyError::new(text)
    })?;
    drive.set_error_policy(rerror, werror);
    if let Some(on) = write_cache {
        drive.set_write_cache(on);
    }
    Ok(VirtioBlk::new(drive, path, options)?)
}

fn error_policy(p: &mut Properties, name: &str) -> Result<Option<OnError>, PropertyError> {
    let Some(text) = p.string(name)? else { return Ok(None) };
    match OnError::from_name(&text) {
        _ if text == "auto" => Ok(None),
        Some(policy) if name == "werror" || policy != OnError::Enospc => Ok(Some(policy)),
        _ => Err(PropertyError::new(format!("Parameter '{name}' does not accept value '{text}'"))),
    }
}

fn balloon(
    mut properties: Properties,
    parts: &Parts<'_>,
) -> Result<Arc<VirtioBalloon>, CreateError> {
    let deflate_on_oom = properties.switch("deflate-on-oom")?.unwrap_or(false);
    let seconds = properties.number("guest-stats-polling-interval", u32::MAX.into(), "uint32_t")?;
    properties.finish()?;
    let memory = Arc::clone(parts.memory);
    let balloon = VirtioBalloon::new(memory, parts.ram_size, deflate_on_oom, parts.timers);
    if let Some(seconds) = seconds {
        balloon.set_polling_interval(u32::try_from(seconds).unwrap_or(u32::MAX));
    }
    Ok(balloon)
}

fn rng(mut properties: Properties, parts: &Parts<'_>) -> Result<Arc<VirtioRng>, CreateError> {
    let max_bytes = properties.number("max-bytes", u64::MAX, "uint64_t")?;
    let period = properties.number("period", u32::MAX.into(), "uint32_t")?.unwrap_or(65536);
    properties.finish()?;
    if max_bytes.is_some_and(|max| i64::try_from(max).is_err()) {
        let text = "'max-bytes' parameter must be non-negative, and less than 2^63";
        return Err(PropertyError::new(text).into());
    }
    if period == 0 {
        return Err(PropertyError::new("'period' parameter expects a positive integer").into());
    }
    let period = Duration::from_millis(period);
    let limit = max_bytes.map(|max_bytes| RngLimit { max_bytes, period });
    Ok(VirtioRng::new(limit, parts.timers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::DriveOptions;
    use bus::{Clock, Device, IrqLine, MsiMessage, MsiSink};
    use serde_json::{Value, json};

    struct NoMsi;
    impl MsiSink for NoMsi {
        fn send(&self, _message: MsiMessage) {}
    }

    struct Board {
        bus: PciBus,
        memory: Arc<GuestMemory>,
        timers: TimerQueue,
        drive: Arc<Drive>,
        _image: tempfile::NamedTempFile,
    }

    impl Board {
        fn new() -> Self {
            let image = tempfile::NamedTempFile::new().unwrap();
            image.as_file().set_len(1 << 20).unwrap();
            let router = [0; 4].map(|_| IrqLine::unconnected());
            let drive = Drive::open("d", image.path(), &DriveOptions::default()).unwrap();
            Self {
                bus: PciBus::new(Arc::default(), Arc::default(), router, Arc::new(NoMsi)),
                memory: Arc::new(GuestMemory::new(&[(0, 1 << 20)]).unwrap()),
                timers: TimerQueue::without_thread(Clock::manual()),
                drive: Arc::new(drive),
                _image: image,
            }
        }

        fn create(&self, driver: &str, properties: Value) -> Result<Created, String> {
            let Value::Object(map) = properties else { panic!("not an object") };
            let parts = Parts {
                bus: &self.bus,
                memory: &self.memory,
                ram_size: 1 << 20,
                timers: &self.timers,
                drive: &|id| (id == "d").then(|| self.drive.clone()),
            };
            create("x", "/machine/x", Properties::new(driver, map), &parts)
                .map_err(|e| e.to_string())
        }
    }

    #[test]
    fn makes_each_kind_where_it_is_wanted() {
        let board = Board::new();
        let disk = board
            .create(
                "virtio-blk-pci",
                json!({"drive": "d", "serial": "s", "addr": "5", "bootindex": "1",
                       "logical_block_size": "4k", "physical_block_size": 4096,
                       "werror": "stop", "bus": "pci.0"}),
            )
            .unwrap();
        assert_eq!((disk.devfn, disk.bootindex), (Devfn::new(5, 0), Some(1)));
        assert_eq!(disk.function.id(), "x");
        assert_eq!(board.drive.info().qdev.as_deref(), Some("/machine/x"));
        let rng = board.create("virtio-rng-pci", json!({"max-bytes": 1, "period": 10})).unwrap();
        assert_eq!(rng.devfn, Devfn::new(0, 0));
        let id = |devfn| board.bus.read_config(devfn, 0, 4);
        assert_eq!((id(disk.devfn), id(rng.devfn)), (0x1001_1af4, 0x1005_1af4));
        let balloon = board.create("virtio-balloon-pci-non-transitional", json!({})).unwrap();
        assert_eq!(id(balloon.devfn), 0x1045_1af4);
        let legacy = board.create("virtio-rng", json!({"disable-modern": "on"})).unwrap();
        assert_eq!(board.bus.read_config(legacy.devfn, 0x34, 1), 0x40);
    }

    #[test]
    fn says_what_is_wrong_as_people_know_it() {
        let board = Board::new();
        let text = |driver: &str, properties| board.create(driver, properties).err().unwrap();
        for (properties, message) in [
            (json!({"foo": 1}), "Property 'virtio-rng-pci.foo' not found"),
            (json!({"addr": "40"}), "Property 'virtio-rng-pci.addr' doesn't take value '40'"),
            (json!({"bus": "foo"}), "Bus 'foo' not found"),
            (json!({"vectors": "foo"}), "Parameter 'vectors' expects integer"),
            (json!({"period": 0}), "'period' parameter expects a positive integer"),
            (json!({"max-bytes": -1}), "Parameter 'max-bytes' expects uint64_t"),
            (
                json!({"disable-legacy": "on", "disable-modern": "on"}),
                "device cannot work as neither modern nor legacy mode is enabled\n\
                 Set either disable-modern or disable-legacy to off",
            ),
        ] {
            assert_eq!(text("virtio-rng-pci", properties), message);
        }
        for (properties, message) in [
            (json!({}), "drive property not set"),
            (
                json!({"drive": "nope"}),
                "Property 'virtio-blk-device.drive' can't find value 'nope'",
            ),
            (json!({"drive": "d", "num-queues": 0}), "num-queues property must be larger than 0"),
            (
                json!({"drive": "d", "logical_block_size": 1000}),
                "Property .logical_block_size doesn't take value '1000', it's not a power of 2",
            ),
        ] {
            assert_eq!(text("virtio-blk-pci", properties), message);
        }
        let message = "'virtio-foo-pci' is not a valid device model name";
        assert_eq!(text("virtio-foo-pci", json!({})), message);
        assert!(board.bus.functions().is_empty());
        assert_eq!(board.bus.reserve(None, "y"), Ok(Devfn::new(0, 0)), "nothing stays reserved");
    }
}
