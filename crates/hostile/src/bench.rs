//! The machines, and the images in their drives.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use accel::log::Log;
use anyhow::{Context, Result, bail, ensure};
use bus::{MachineControl, Notice, ShutdownCause};
use cli::Action;
use machine::pc::board::Pc;
use machine::spec::MachineSpec;

/// RAM of a guest, in bytes.
pub(crate) const RAM: u64 = 64 << 20;

/// A kind of machine: its name and its options, in which `{NAME}` stands for the path of an image.
struct Kind {
    name: &'static str,
    options: &'static str,
}

/// What all of them have.
const COMMON: &str = "-m 64 -accel qtest -qtest null -bios {bios} -S";

/// Every device is in at least one of them.
const KINDS: &[Kind] = &[
    Kind {
        name: "the chipset with ISA, IDE and USB devices",
        options: "-vga std -usb -smp 2 \
            -drive if=ide,index=0,format=raw,file={disk} \
            -drive if=ide,index=1,format=raw,snapshot=on,file={snapshot} \
            -drive if=ide,index=2,media=cdrom,format=raw,file={cd} \
            -drive if=ide,index=3,format=raw,file={odd},rerror=report,werror=ignore \
            -drive if=floppy,index=0,format=raw,file={floppy} \
            -drive if=floppy,index=1,format=raw,readonly=on,file={locked-floppy} \
            -serial null -serial null -serial null -serial null -parallel null \
            -chardev null,id=debug -device isa-debugcon,chardev=debug,iobase=0xe9 \
            -device isa-debug-exit -device pvpanic -device pvpanic-pci -device vmgenid \
            -device pc-testdev -device pci-testdev,membar=64k -device edu \
            -cpu max,hv-passthrough -device hyperv-testdev \
            -device ib700 -device i6300esb -device isa-fdc,iobase=0x370,irq=10,dma=1 \
            -device usb-hub,port=1,id=hub -device usb-kbd,port=1.1 -device usb-mouse,port=1.2 \
            -device usb-tablet,port=1.3 \
            -drive if=none,id=stick,format=raw,file={stick} \
            -device usb-storage,drive=stick,port=2 -device loader,addr=0x1000,data=1,data-len=4",
    },
    Kind {
        name: "virtio disks and SCSI",
        options: "-vga none -nodefaults \
            -drive if=none,id=a,format=raw,file={disk} \
            -drive if=none,id=b,format=raw,readonly=on,file={locked} \
            -drive if=none,id=c,format=raw,snapshot=on,file={snapshot} \
            -drive if=none,id=d,format=raw,discard=unmap,file={odd} \
            -drive if=none,id=e,media=cdrom,format=raw,file={cd} \
            -drive if=none,id=f,media=cdrom \
            -drive if=none,id=g,format=raw,file={stick} \
            -device virtio-blk-pci,drive=a,num-queues=2 \
            -device virtio-blk-pci-non-transitional,drive=b \
            -device virtio-blk-pci-transitional,drive=g \
            -device virtio-scsi-pci,id=scsi -device scsi-hd,bus=scsi.0,drive=c \
            -device scsi-hd,bus=scsi.0,drive=d,scsi-id=5,lun=1 -device scsi-cd,bus=scsi.0,drive=e \
            -device scsi-cd,bus=scsi.0,drive=f \
            -device virtio-scsi-pci-non-transitional -device virtio-scsi-pci-transitional \
            -device virtio-rng-pci -device virtio-rng-pci-transitional \
            -device virtio-balloon-pci-transitional",
    },
    Kind {
        name: "virtio screen and input",
        options: "-vga virtio -nodefaults -global virtio-vga.max_hostmem=32M \
            -device virtio-gpu-pci,max_outputs=2,max_hostmem=32M \
            -device virtio-keyboard-pci -device virtio-mouse-pci -device virtio-tablet-pci \
            -device virtio-rng-pci-non-transitional,max-bytes=1024,period=1000 \
            -device virtio-balloon-pci-non-transitional",
    },
    Kind {
        name: "AHCI, flash memory and USB controllers",
        options: "-nodefaults -device secondary-vga -no-hpet -device virtio-balloon-pci \
            -device ich9-usb-uhci1 -device ich9-usb-uhci2 -device ich9-usb-uhci3 \
            -device ich9-usb-uhci4 -device ich9-usb-uhci5 -device ich9-usb-uhci6 \
            -device piix4-usb-uhci \
            -drive if=pflash,unit=0,format=raw,readonly=on,file={code} \
            -drive if=pflash,unit=1,format=raw,file={flash} \
            -drive if=none,id=a,format=raw,file={disk} -drive if=none,id=b,format=raw,file={odd} \
            -drive if=none,id=c,media=cdrom,format=raw,file={cd} \
            -drive if=none,id=d,format=raw,snapshot=on,file={snapshot} \
            -device ich9-ahci,id=ahci -device ide-hd,bus=ahci.0,drive=a \
            -device ide-hd,bus=ahci.1,drive=b -device ide-cd,bus=ahci.2,drive=c \
            -device ide-hd,bus=ahci.5,drive=d",
    },
];

/// An image: its name, its size in bytes, and whether the guest can change it.
struct Image {
    name: &'static str,
    size: u64,
    writable: bool,
}

const IMAGES: &[Image] = &[
    Image { name: "bios", size: 64 << 10, writable: false },
    Image { name: "disk", size: 8 << 20, writable: true },
    // As small as a disk can be and have a last sector.
    Image { name: "odd", size: 3 * 512, writable: true },
    Image { name: "locked", size: 1 << 20, writable: false },
    Image { name: "snapshot", size: 4 << 20, writable: false },
    Image { name: "cd", size: 1 << 20, writable: false },
    Image { name: "stick", size: 2 << 20, writable: true },
    Image { name: "floppy", size: 1440 << 10, writable: true },
    Image { name: "locked-floppy", size: 720 << 10, writable: false },
    Image { name: "code", size: 128 << 10, writable: false },
    Image { name: "flash", size: 128 << 10, writable: true },
];

/// What the machine is asked for.
#[derive(Default)]
pub(crate) struct Control {
    reset: AtomicBool,
}

impl Control {
    /// Whether a reset was asked for since the last call.
    pub(crate) fn take_reset(&self) -> bool {
        self.reset.swap(false, Ordering::SeqCst)
    }
}

impl MachineControl for Control {
    fn request_reset(&self, _: ShutdownCause) {
        self.reset.store(true, Ordering::SeqCst);
    }
    // The guest wants to end: it has to go on.
    fn request_shutdown(&self, _: ShutdownCause) {}
    fn request_exit(&self, _: i32) {}
    fn notify(&self, _: Notice) {}
}

/// A directory with images, and the machine that uses them.
pub(crate) struct Bench {
    kind: &'static Kind,
    spec: MachineSpec,
    images: Vec<(&'static Image, PathBuf, u64)>,
    _directory: tempfile::TempDir,
}

impl Bench {
    /// The bench of the machine with this number; any number is one.
    pub(crate) fn new(number: u8) -> Result<Self> {
        let kind = &KINDS[usize::from(number) % KINDS.len()];
        let directory = tempfile::tempdir()?;
        let mut options = format!("{COMMON} {}", kind.options);
        let mut images = Vec::new();
        for image in IMAGES {
            let place = format!("{{{}}}", image.name);
            if options.contains(&place) {
                let path = directory.path().join(image.name);
                options = options.replace(&place, path.to_str().context("odd directory")?);
                fill(&path, image)?;
                let sum = checksum(&path)?;
                images.push((image, path, sum));
            }
        }
        let arguments = options.split_whitespace().map(str::to_owned);
        let Action::Run(config) = cli::parse(arguments)? else { bail!("{options}: not a machine") };
        Ok(Self { kind, spec: config.machine, images, _directory: directory })
    }

    /// What kind of machine it is.
    pub(crate) fn name(&self) -> &'static str {
        self.kind.name
    }

    /// The machine, new.
    pub(crate) fn machine(&self, control: Arc<Control>) -> Result<Arc<Pc>> {
        Ok(Arc::new(Pc::new(&self.spec, control, Arc::new(Log::default()))?))
    }

    /// Whether images are what the guest may have made of them.
    pub(crate) fn check_images(&self) -> Result<()> {
        for (image, path, sum) in &self.images {
            let size = fs::metadata(path)?.len();
            ensure!(size == image.size, "image '{}' has {size} bytes now", image.name);
            let changed = checksum(path)? != *sum;
            ensure!(image.writable || !changed, "image '{}' has changed", image.name);
        }
        Ok(())
    }
}

/// Contents that differ from place to place.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = fastrand::Rng::with_seed(1);
    std::iter::repeat_with(|| random.u8(..)).take(64 << 10).collect()
});

fn fill(path: &Path, image: &Image) -> Result<()> {
    let file = File::create(path)?;
    file.set_len(image.size)?;
    let head = (image.size as usize).min(PATTERN.len());
    file.write_all_at(&PATTERN[..head], 0)?;
    file.write_all_at(&PATTERN[..512], image.size - 512)?;
    Ok(())
}

fn checksum(path: &Path) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    fs::read(path)?.hash(&mut hasher);
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::KINDS;

    /// Devices that other options make.
    const BY_OPTIONS: [(&str, &str); 6] = [
        ("VGA", "-vga std"),
        ("floppy", "if=floppy"),
        ("isa-parallel", "-parallel null"),
        ("isa-serial", "-serial null"),
        ("piix3-usb-uhci", "-usb "),
        ("virtio-vga", "-vga virtio"),
    ];

    #[test]
    fn every_type_of_device_is_in_one_of_the_machines() {
        let has = |option: &str| KINDS.iter().any(|kind| kind.options.contains(option));
        for driver in machine::pc::devices::drivers() {
            let mut options = KINDS.iter().flat_map(|kind| kind.options.split_whitespace());
            let is_named = options.any(|option| option.split(',').next() == Some(driver.name));
            let other = BY_OPTIONS.iter().find(|(name, _)| *name == driver.name);
            let is_made = other.is_some_and(|(_, option)| has(option));
            assert!(is_named || is_made, "no hostile guest has a {}", driver.name);
        }
    }
}
