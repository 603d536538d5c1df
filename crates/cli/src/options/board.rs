//! `-machine`: the machine type and the properties of its board.

use ::machine::smbios::EntryPoint;
use ::machine::spec::{BoardSpec, MACHINE_ALIAS, MACHINE_TYPE};
use ::options::{OptionError, Properties};

use super::machine::set_accelerator;
use super::{Builder, firmware, machine, take_padded};

const MACHINES: &[&str] = &[MACHINE_ALIAS, MACHINE_TYPE];

/// What a property that can be left to the machine says.
const ON_OFF_AUTO: &[(&str, Option<bool>)] =
    &[("on", Some(true)), ("off", Some(false)), ("auto", None)];

/// Properties with the only value that this machine can have, and why it has no other.
const FIXED: &[(&str, bool, &str)] = &[
    ("i8042", true, "the keyboard controller is part of the board"),
    ("nvdimm", false, "there are no non-volatile memory devices"),
    ("hmat", false, "there is no table of memory attributes"),
    ("smbus", true, "the SMBus is part of the power management function"),
    ("suppress-vmdesc", false, "machines can't be migrated"),
];
/// The same, for those that can be left to the machine.
const FIXED_AUTO: &[(&str, bool, &str)] = &[("pic", true, "the 8259s are part of the board")];

/// Least and most RAM below 4 GiB that can be asked for, in bytes.
const LOW_MEMORY_MIN: u64 = 16 << 20;
const LOW_MEMORY_MAX: u64 = 1 << 32;
/// The most flash memory that can be asked for: it must stay clear of the local APICs.
const FIRMWARE_MAX: u64 = 16 << 20;

pub(super) fn machine(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    if matches!(value, "help" | "?") {
        builder.print = Some(
            "Supported machines are:\n\
             pc                   Standard PC (i440FX + PIIX) (alias of pc-i440fx-7.2)\n\
             pc-i440fx-7.2        Standard PC (i440FX + PIIX) (default)\n"
                .to_owned(),
        );
        return Ok(());
    }
    let mut options = Properties::parse("-machine", value, Some("type"))?;
    if let Some(name) = options.take("type").filter(|name| !MACHINES.contains(&name.as_str())) {
        return Err(OptionError::unknown("-machine: unsupported machine type", &name, MACHINES));
    }
    if let Some(names) = options.take("accel") {
        set_accelerator(builder, "-machine", &names)?;
    }
    if let Some(hpet) = options.take_bool("hpet")? {
        builder.machine().no_hpet = !hpet;
    }
    if let Some(usb) = options.take_bool("usb")? {
        builder.machine().usb = usb;
    }
    if let Some(graphics) = options.take_bool("graphics")? {
        builder.no_graphics = !graphics;
    }
    boot_options(builder, &mut options)?;
    check_fixed(&mut options)?;
    builder.memory_backend = options.take("memory-backend").or(builder.memory_backend.take());
    check_objects(&mut options)?;
    if let Some(bits) = options.take_choice(
        "smbios-entry-point-type",
        &[("32", EntryPoint::Version2), ("64", EntryPoint::Version3)],
    )? {
        builder.machine().smbios.entry_point = bits;
    }
    // Where the interrupt controllers are is a matter of hypervisors in the kernel; the serial ATA bus is
    // one of other machine types.
    for key in ["kernel-irqchip", "kernel_irqchip"] {
        options.take_choice(key, &[("on", ()), ("off", ()), ("split", ())])?;
    }
    options.take_bool("sata")?;
    board(&mut builder.machine().board, &mut options)?;
    options.finish()
}

fn board(board: &mut BoardSpec, options: &mut Properties) -> Result<(), OptionError> {
    if let Some(acpi) = options.take_choice("acpi", ON_OFF_AUTO)? {
        board.no_acpi = acpi == Some(false);
    }
    if let Some(smm) = options.take_choice("smm", ON_OFF_AUTO)? {
        board.no_smm = smm == Some(false);
    }
    if let Some(pit) = options.take_choice("pit", ON_OFF_AUTO)? {
        board.no_pit = pit == Some(false);
    }
    if let Some(port) = options.take_choice("vmport", ON_OFF_AUTO)? {
        board.vmware_port = port == Some(true);
    }
    for (key, flash) in ["pflash0", "pflash1"].into_iter().zip(&mut board.flash) {
        *flash = options.take(key).or(flash.take());
    }
    if let Some(dump) = options.take_bool("dump-guest-core")? {
        board.no_core_dump = !dump;
    }
    board.merge_memory = options.take_bool("mem-merge")?.unwrap_or(board.merge_memory);
    if let Some(size) = options.take_size("max-ram-below-4g", 1)? {
        if size > LOW_MEMORY_MAX {
            return Err(OptionError::new(format!(
                "Machine option 'max-ram-below-4g={size}' expects size less than or equal to 4G"
            )));
        }
        if size < LOW_MEMORY_MIN || !size.is_multiple_of(1 << 20) {
            return Err(OptionError::new(format!(
                "Machine option 'max-ram-below-4g={size}' expects at least {} MiB and whole MiB",
                LOW_MEMORY_MIN >> 20
            )));
        }
        board.max_low_memory = Some(size);
    }
    if let Some(size) = options.take_size("max-fw-size", 1)? {
        if size > FIRMWARE_MAX {
            return Err(OptionError::new(format!(
                "-machine: max-fw-size={size}: at most {} MiB are possible",
                FIRMWARE_MAX >> 20
            )));
        }
        board.max_firmware = Some(size);
    }
    board.oem_id = take_padded(options, "x-oem-id")?.or(board.oem_id);
    board.oem_table_id = take_padded(options, "x-oem-table-id")?.or(board.oem_table_id);
    Ok(())
}

/// Properties that are other names of options.
fn boot_options(builder: &mut Builder, options: &mut Properties) -> Result<(), OptionError> {
    type Apply = fn(&mut Builder, &str) -> Result<(), OptionError>;
    let same: [(&str, Apply); 4] = [
        ("firmware", firmware::bios),
        ("kernel", machine::kernel),
        ("initrd", machine::initrd),
        ("append", machine::append),
    ];
    for (key, apply) in same {
        if let Some(value) = options.take(key) {
            apply(builder, &value)?;
        }
    }
    Ok(())
}

fn check_fixed(options: &mut Properties) -> Result<(), OptionError> {
    let refused = |key: &str, value: bool, reason: &str| {
        let value = if value { "on" } else { "off" };
        Err(OptionError::new(format!(
            "-machine: {key}={value}: not available in this build: {reason}"
        )))
    };
    for &(key, only, reason) in FIXED {
        if let Some(value) = options.take_bool(key)?.filter(|value| *value != only) {
            return refused(key, value, reason);
        }
    }
    for &(key, only, reason) in FIXED_AUTO {
        let value = options.take_choice(key, ON_OFF_AUTO)?.flatten();
        if let Some(value) = value.filter(|value| *value != only) {
            return refused(key, value, reason);
        }
    }
    Ok(())
}

/// Properties that name objects of kinds that there are none of.
fn check_objects(options: &mut Properties) -> Result<(), OptionError> {
    if let Some(id) = options.take("memory-encryption") {
        return Err(OptionError::new(format!("No such memory encryption object '{id}'")));
    }
    match options.take("confidential-guest-support") {
        Some(id) => Err(OptionError::new(format!("Device '{id}' not found"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Result<Builder, String> {
        let mut builder = Builder::default();
        machine(&mut builder, value).map_err(|e| e.to_string())?;
        Ok(builder)
    }

    #[test]
    fn what_libvirt_says_of_a_pc_is_understood() {
        let mut builder = parse(
            "pc-i440fx-7.2,usb=off,vmport=off,dump-guest-core=off,smm=off,kernel_irqchip=on,\
             pflash0=libvirt-pflash0-format,pflash1=libvirt-pflash1-format,hpet=off,acpi=on",
        )
        .unwrap();
        let board = &builder.machine().board;
        assert!(board.no_core_dump && board.no_smm && !board.no_acpi);
        assert!(!board.no_pit && !board.vmware_port);
        assert_eq!(board.flash[1].as_deref(), Some("libvirt-pflash1-format"));
        assert!(builder.machine().no_hpet);
    }

    #[test]
    fn what_there_is_not_is_refused_by_name() {
        for (value, message) in [
            ("pic=off", "pic=off: not available in this build"),
            ("nvdimm=on", "nvdimm=on: not available in this build"),
            ("memory-encryption=x", "No such memory encryption object 'x'"),
            ("confidential-guest-support=x", "Device 'x' not found"),
            ("x-oem-id=ABCDEFG", "x-oem-id value is bigger than 6 bytes"),
            ("max-ram-below-4g=8G", "'max-ram-below-4g=8589934592' expects size less than"),
            ("max-ram-below-4g=1M", "at least 16 MiB"),
            ("max-fw-size=1G", "max-fw-size"),
            ("smm=maybe", "'maybe'"),
            ("acpi=maybe", "'maybe'"),
            ("smbios-entry-point-type=16", "'16'"),
            ("hpte=off", "'hpet'"),
        ] {
            let refusal = parse(value).err().unwrap_or_default();
            assert!(refusal.contains(message), "{value}: {refusal}");
        }
    }
}
