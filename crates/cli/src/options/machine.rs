//! Options about the machine itself.

use std::fmt::Write;

use machine::pc::layout::MEMORY_MAX;
use machine::spec::{
    Accelerator, BootImage, CpuModel, DirectBoot, Graphics, IcountSpec, MAX_CPUS, MachineSpec,
    ModelError, PanicAction, RebootAction, ShutdownAction, Smp, TranslationSpec, WatchdogAction,
};
use uuid::Uuid;

use super::Builder;
use crate::config::DisplaySpec;
use ::options::OptionError;
use ::options::{Properties, parse_choice};

/// Least RAM, in bytes: what lies below 1 MiB plus room for a kernel.
const MIN_MEMORY: u64 = 2 << 20;

/// Most MiB of translated code.
const MAX_TB_SIZE: u16 = 1024;

const ACCELERATORS: &[(&str, Option<Accelerator>)] = &[
    ("soft", Some(Accelerator::Soft)),
    ("tcg", Some(Accelerator::Soft)),
    ("qtest", Some(Accelerator::Qtest)),
    ("kvm", None),
];

const WATCHDOG_ACTIONS: &[(&str, WatchdogAction)] = &[
    ("reset", WatchdogAction::Reset),
    ("shutdown", WatchdogAction::Shutdown),
    ("poweroff", WatchdogAction::Poweroff),
    ("pause", WatchdogAction::Pause),
    ("debug", WatchdogAction::Debug),
    ("none", WatchdogAction::None),
    ("inject-nmi", WatchdogAction::InjectNmi),
];

pub(super) fn accel(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    if matches!(value, "help" | "?") {
        builder.print = Some("Accelerators supported in QEMU binary:\ntcg\nqtest\n".to_owned());
        return Ok(());
    }
    let mut options = Properties::parse("-accel", value, Some("accel"))?;
    let name = options.require("accel")?;
    set_accelerator(builder, "-accel", &name)?;
    if let Some(translate) = options.take_bool("translate")? {
        builder.machine().translation.translate = translate;
    }
    // CPUs are threads of their own, and take turns where `check` or time by instructions wants it.
    options.take_choice("thread", &[("single", ()), ("multi", ())])?;
    if let Some(check) = options.take_bool("check")? {
        builder.machine().translation.check = check;
    }
    let translation = builder.machine().translation;
    if translation.check && !translation.translate {
        return Err(OptionError::new(
            "-accel: check=on compares translated code with the interpreter: it needs translate=on",
        ));
    }
    if translation.check && !TranslationSpec::is_possible() {
        return Err(OptionError::new("-accel: check=on: this host cannot translate"));
    }
    if let Some(size) = options.take_number("tb-size")? {
        if !(1..=MAX_TB_SIZE).contains(&size) {
            return Err(OptionError::new(format!(
                "-accel: tb-size={size} is not between 1 and {MAX_TB_SIZE} (MiB)"
            )));
        }
        builder.machine().translation.buffer_mib = size;
    }
    options.finish()
}

/// `-overcommit`. Guests always wait and pause by themselves, without the host being asked: `cpu-pm` is nothing
/// to be changed.
pub(super) fn overcommit(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let mut options = Properties::parse("-overcommit", value, None)?;
    if let Some(lock) = options.take_bool("mem-lock")? {
        builder.machine().board.lock_memory = lock;
    }
    options.take_bool("cpu-pm")?;
    options.finish()
}

/// Most that `-icount shift=` takes.
const MAX_SHIFT: u32 = 10;

pub(super) fn icount(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let mut options = Properties::parse("-icount", value, Some("shift"))?;
    let shift = options.require("shift")?;
    if shift == "auto" {
        return Err(OptionError::new(format!(
            "-icount: shift=auto is not supported; give a number from 0 to {MAX_SHIFT}"
        )));
    }
    let shift = shift.parse().ok().filter(|shift| *shift <= MAX_SHIFT).ok_or_else(|| {
        OptionError::new(format!("-icount: Invalid shift value: not from 0 to {MAX_SHIFT}"))
    })?;
    if options.take_bool("align")? == Some(true) {
        return Err(OptionError::new("-icount: align=on is not supported"));
    }
    for name in ["rr", "rrfile", "rrsnapshot"] {
        if options.take(name).is_some() {
            return Err(OptionError::new(format!("-icount: {name} is not supported")));
        }
    }
    let sleep = options.take_bool("sleep")?.unwrap_or(true);
    options.finish()?;
    builder.machine().icount = Some(IcountSpec { shift, sleep });
    Ok(())
}

/// Checks that time can go by instructions on the machine, if it is to.
pub(super) fn finish_icount(machine: &MachineSpec) -> Result<(), OptionError> {
    let refused = match () {
        () if machine.icount.is_none() => return Ok(()),
        () if machine.smp.cpus > 1 => "more than one CPU",
        () if machine.accelerator != Accelerator::Soft => "this accelerator",
        () if machine.translation.check => "-accel check=on",
        () => return Ok(()),
    };
    Err(OptionError::new(format!("-icount: not supported with {refused}")))
}

/// Takes the first of `names`, separated by colons, that is to be had. Of several options the first that
/// has one counts; it is an error if none has.
pub(super) fn set_accelerator(
    builder: &mut Builder,
    option: &str,
    names: &str,
) -> Result<(), OptionError> {
    let mut chosen = None;
    for name in names.split(':') {
        chosen = chosen.or(parse_choice(option, "accel", name, ACCELERATORS)?);
    }
    match (chosen, builder.accelerator) {
        (Some(accelerator), None) => builder.accelerator = Some(accelerator),
        (Some(_), Some(_)) => {}
        (None, _) => {
            builder.missing_accelerator = Some(format!(
                "{option}: accelerator '{names}' is not available in this build; use 'soft'"
            ));
        }
    }
    Ok(())
}

/// Gives the machine the accelerator that was chosen.
pub(super) fn finish_accelerator(builder: &mut Builder) -> Result<(), OptionError> {
    match (builder.accelerator, builder.missing_accelerator.take()) {
        (Some(accelerator), _) => builder.machine().accelerator = accelerator,
        (None, Some(reason)) => return Err(OptionError::new(reason)),
        (None, None) => {}
    }
    Ok(())
}

pub(super) fn cpu(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    if matches!(value, "help" | "?") {
        let mut text = "Available CPUs:\n".to_owned();
        for (name, description) in CpuModel::all() {
            let _ = writeln!(text, "x86 {name:<20}  {description}");
        }
        text.push_str("\nRecognized CPUID flags:\n");
        for name in CpuModel::feature_names() {
            let _ = writeln!(text, "  {name}");
        }
        builder.print = Some(text);
        return Ok(());
    }
    builder.machine().cpu = CpuModel::parse(value).map_err(|error| match error {
        ModelError::NoModel(name) => {
            let names: Vec<&str> = CpuModel::all().map(|(name, _)| name).collect();
            OptionError::unknown("-cpu: unable to find CPU model", &name, &names)
        }
        other => OptionError::new(format!("-cpu {value}: {other}")),
    })?;
    Ok(())
}

pub(super) fn smp(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let mut options = Properties::parse("-smp", value, Some("cpus"))?;
    let cpus: Option<u32> = options.take_number("cpus")?;
    let sockets: Option<u32> = options.take_number("sockets")?;
    let cores: Option<u32> = options.take_number("cores")?;
    let threads: Option<u32> = options.take_number("threads")?;
    let max: Option<u32> = options.take_number("maxcpus")?;
    options.finish()?;
    builder.machine().smp = topology(cpus, sockets, cores, threads, max)?;
    Ok(())
}

/// Fills in what was left out. As on QEMU's machine types since 6.2, CPUs become cores of one socket
/// unless said otherwise.
fn topology(
    cpus: Option<u32>,
    sockets: Option<u32>,
    cores: Option<u32>,
    threads: Option<u32>,
    max: Option<u32>,
) -> Result<Smp, OptionError> {
    let given = [cpus, sockets, cores, threads, max];
    if given.contains(&Some(0)) {
        return Err(OptionError::new(
            "Invalid CPU topology: CPU topology parameters must be greater than zero",
        ));
    }
    let threads = threads.unwrap_or(1);
    let total = max.or(cpus);
    let (sockets, cores) = match (sockets, cores) {
        (Some(sockets), Some(cores)) => (sockets, cores),
        (Some(sockets), None) => {
            let per_socket = sockets.saturating_mul(threads);
            (sockets, total.map_or(1, |n| (n / per_socket).max(1)))
        }
        (None, cores) => match (cores, total) {
            (Some(cores), total) => {
                let per_socket = cores.saturating_mul(threads);
                (total.map_or(1, |n| (n / per_socket).max(1)), cores)
            }
            (None, Some(total)) => (1, (total / threads).max(1)),
            (None, None) => (1, 1),
        },
    };
    // Wide enough for whatever three numbers are given.
    let product = u128::from(sockets) * u128::from(cores) * u128::from(threads);
    let total = total.map_or(product, u128::from);
    let cpus = cpus.map_or(total, u128::from);
    if product != total {
        return Err(OptionError::new(format!(
            "Invalid CPU topology: product of the hierarchy must match maxcpus: \
             sockets ({sockets}) * cores ({cores}) * threads ({threads}) != maxcpus ({total})"
        )));
    }
    if cpus > total {
        return Err(OptionError::new(format!(
            "Invalid CPU topology: maxcpus must be equal to or greater than smp: \
             maxcpus ({total}) < smp_cpus ({cpus})"
        )));
    }
    if total > u128::from(MAX_CPUS) {
        return Err(OptionError::new(format!(
            "Invalid SMP CPUs {total}. The max CPUs supported by machine 'pc' is {MAX_CPUS}"
        )));
    }
    Ok(Smp { cpus: cpus as u32, sockets, cores, threads })
}

pub(super) fn memory(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let mut options = Properties::parse("-m", value, Some("size"))?;
    let size = options.take_size("size", 1 << 20)?.unwrap_or(super::DEFAULT_MEMORY);
    options.finish()?;
    check_memory(&format!("-m {value}"), size)?;
    // Whole MiB keep the memory map free of odd ends.
    builder.machine().memory = size.next_multiple_of(1 << 20);
    Ok(())
}

/// Refuses what is too little or too much memory for a machine; `origin` says who wants it.
pub(super) fn check_memory(origin: &str, size: u64) -> Result<(), OptionError> {
    if size < MIN_MEMORY {
        return Err(OptionError::new(format!(
            "{origin}: a machine needs at least {} MiB of memory",
            MIN_MEMORY >> 20
        )));
    }
    if size > MEMORY_MAX {
        return Err(OptionError::new(format!(
            "{origin}: a machine has at most {} GiB of memory, as its CPUs can't address more",
            MEMORY_MAX >> 30
        )));
    }
    Ok(())
}

pub(super) fn name(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let mut options = Properties::parse("-name", value, Some("guest"))?;
    builder.machine().name = options.take("guest");
    // Naming threads for debuggers is what we do anyway.
    options.take_bool("debug-threads")?;
    options.finish()
}

pub(super) fn uuid(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let uuid = Uuid::parse_str(value).map_err(|_| {
        OptionError::new(format!(
            "failed to parse UUID '{value}': it looks like 550e8400-e29b-41d4-a716-446655440000"
        ))
    })?;
    builder.machine().uuid = Some(uuid);
    Ok(())
}

pub(super) fn kernel(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let kernel = BootImage::File(value.into());
    builder.machine().boot = Some(DirectBoot { kernel, ..DirectBoot::default() });
    Ok(())
}

pub(super) fn initrd(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    builder.initrd = Some(value.into());
    Ok(())
}

pub(super) fn append(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    builder.append = Some(value.to_owned());
    Ok(())
}

pub(super) fn paused(builder: &mut Builder, _: &str) -> Result<(), OptionError> {
    builder.machine().start_paused = true;
    Ok(())
}

pub(super) fn no_acpi(builder: &mut Builder, _: &str) -> Result<(), OptionError> {
    builder.machine().board.no_acpi = true;
    Ok(())
}

pub(super) fn no_hpet(builder: &mut Builder, _: &str) -> Result<(), OptionError> {
    builder.machine().no_hpet = true;
    Ok(())
}

pub(super) fn watchdog_action(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let action = parse_choice("-watchdog-action", "action", value, WATCHDOG_ACTIONS)?;
    builder.machine().actions.watchdog = action;
    Ok(())
}

pub(super) fn no_reboot(builder: &mut Builder, _: &str) -> Result<(), OptionError> {
    builder.machine().actions.reboot = RebootAction::Shutdown;
    Ok(())
}

pub(super) fn no_shutdown(builder: &mut Builder, _: &str) -> Result<(), OptionError> {
    builder.machine().actions.shutdown = ShutdownAction::Pause;
    Ok(())
}

pub(super) fn action(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let mut options = Properties::parse("-action", value, None)?;
    let actions = &mut builder.machine().actions;
    if let Some(reboot) = options.take_choice(
        "reboot",
        &[("reset", RebootAction::Reset), ("shutdown", RebootAction::Shutdown)],
    )? {
        actions.reboot = reboot;
    }
    if let Some(shutdown) = options.take_choice(
        "shutdown",
        &[("poweroff", ShutdownAction::Poweroff), ("pause", ShutdownAction::Pause)],
    )? {
        actions.shutdown = shutdown;
    }
    if let Some(panic) = options.take_choice(
        "panic",
        &[
            ("none", PanicAction::None),
            ("pause", PanicAction::Pause),
            ("shutdown", PanicAction::Shutdown),
            ("exit-failure", PanicAction::ExitFailure),
        ],
    )? {
        actions.panic = panic;
    }
    if let Some(watchdog) = options.take_choice("watchdog", WATCHDOG_ACTIONS)? {
        actions.watchdog = watchdog;
    }
    options.finish()
}

pub(super) fn usb(builder: &mut Builder, _: &str) -> Result<(), OptionError> {
    builder.machine().usb = true;
    Ok(())
}

pub(super) fn nodefaults(builder: &mut Builder, _: &str) -> Result<(), OptionError> {
    builder.no_defaults = true;
    Ok(())
}

/// There are no VNC servers; that none is wanted can be said.
pub(super) fn vnc(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    if value != "none" {
        return Err(OptionError::new(format!(
            "-vnc {value}: not available in this build; use -vnc none or -display"
        )));
    }
    builder.config.display = DisplaySpec::None;
    Ok(())
}

pub(super) fn nographic(builder: &mut Builder, _: &str) -> Result<(), OptionError> {
    builder.no_graphic = true;
    Ok(())
}

/// Displays by name; those without a kind are not in this build.
const DISPLAYS: &[(&str, Option<DisplaySpec>)] = &[
    ("none", Some(DisplaySpec::None)),
    ("curses", Some(DisplaySpec::Curses)),
    ("gtk", None),
    ("sdl", None),
    ("egl-headless", None),
    ("spice-app", None),
    ("dbus", None),
    ("vnc", None),
];

pub(super) fn display(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let known = DISPLAYS.iter().filter(|(_, kind)| kind.is_some()).map(|(name, _)| *name);
    if matches!(value, "help" | "?") {
        let names: String = known.map(|name| format!("{name}\n")).collect();
        builder.print = Some(format!("Available display backend types:\n{names}"));
        return Ok(());
    }
    let mut options = Properties::parse("-display", value, Some("type"))?;
    let name = options.require("type")?;
    // The character set of the guest, which is always that of its font.
    if name == "curses" {
        options.take("charset");
    }
    builder.config.display =
        parse_choice("-display", "type", &name, DISPLAYS)?.ok_or_else(|| {
            OptionError::new(format!(
                "-display {name}: not available in this build; use one of {}",
                known.collect::<Vec<_>>().join(", ")
            ))
        })?;
    options.finish()
}

pub(super) fn curses(builder: &mut Builder, _: &str) -> Result<(), OptionError> {
    display(builder, "curses")
}

/// Graphics adapters by name, with what they are; those without a kind are not in this build.
const GRAPHICS: &[(&str, &str, Option<Graphics>)] = &[
    ("none", "no graphic card", Some(Graphics::None)),
    ("std", "standard VGA", Some(Graphics::Std)),
    ("cirrus", "Cirrus VGA", None),
    ("vmware", "VMWare SVGA", None),
    ("qxl", "QXL VGA", None),
    ("virtio", "Virtio VGA", Some(Graphics::Virtio)),
];
/// Devices that are graphics adapters, in place of the default one.
const GRAPHICS_DEVICES: &[&str] = &["VGA", "virtio-vga"];

pub(super) fn vga(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let known = || GRAPHICS.iter().filter(|(_, _, kind)| kind.is_some());
    if matches!(value, "help" | "?") {
        let mut text = String::new();
        for (name, description, kind) in known() {
            let default = if *kind == Some(Graphics::Std) { " (default)" } else { "" };
            let _ = writeln!(text, "{name:<20} {description}{default}");
        }
        builder.print = Some(text);
        return Ok(());
    }
    match GRAPHICS.iter().find(|(name, ..)| *name == value) {
        Some((_, _, Some(kind))) => {
            builder.graphics = Some(*kind);
            Ok(())
        }
        Some((_, description, None)) => {
            let names: Vec<_> = known().map(|(name, ..)| *name).collect();
            Err(OptionError::new(format!(
                "-vga {value}: {description} not available in this build; use one of {}",
                names.join(", ")
            )))
        }
        None => {
            let names: Vec<_> = known().map(|(name, ..)| *name).collect();
            Err(OptionError::unknown("-vga: unknown vga type:", value, &names))
        }
    }
}

/// The adapter that the machine has: what `-vga` says, else one unless there is one or none is wanted.
pub(super) fn finish_graphics(builder: &mut Builder) {
    let mut devices = builder.config.machine.devices.iter();
    let has_one = devices.any(|device| GRAPHICS_DEVICES.contains(&device.driver.as_str()));
    let default = if builder.no_defaults || has_one { Graphics::None } else { Graphics::Std };
    builder.config.machine.graphics = builder.graphics.unwrap_or(default);
}

pub(super) fn net(_: &mut Builder, value: &str) -> Result<(), OptionError> {
    only_none("-net", value)
}

pub(super) fn audio(_: &mut Builder, value: &str) -> Result<(), OptionError> {
    only_none("-audio", value)
}

/// An audio backend without a sound device has nothing to play: `none` is all there is.
pub(super) fn audiodev(_: &mut Builder, value: &str) -> Result<(), OptionError> {
    let mut options = Properties::parse("-audiodev", value, Some("driver"))?;
    let driver = options.require("driver")?;
    options.take_id("id")?.ok_or_else(|| options.missing("id"))?;
    options.finish()?;
    only_none("-audiodev", &driver)
}

/// For what this build has not: it can only be switched off.
pub(super) fn only_none(option: &str, value: &str) -> Result<(), OptionError> {
    match value {
        "none" => Ok(()),
        _ => Err(OptionError::value(option, value, "not available in this build; use 'none'")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_models_are_known_by_name() {
        let refusal = |value: &str| cpu(&mut Builder::default(), value).unwrap_err().to_string();
        assert!(cpu(&mut Builder::default(), "max").is_ok());
        assert!(cpu(&mut Builder::default(), "qemu64").is_ok());
        assert_eq!(
            refusal("qemu46"),
            "-cpu: unable to find CPU model 'qemu46'; did you mean 'qemu64'?"
        );
        assert!(refusal("max,+avx512f").contains("feature 'avx512f'"));
        assert!(refusal("max,fxr=on").contains("property 'fxr'"));
        let mut builder = Builder::default();
        cpu(&mut builder, "Nehalem,+smep").unwrap();
        assert_eq!(builder.machine().cpu.name, "Nehalem");
        assert!(builder.machine().cpu.features.has_name("smep"));
    }

    #[test]
    fn time_may_go_by_instructions() {
        let mut builder = Builder::default();
        icount(&mut builder, "shift=4,sleep=off,align=off").unwrap();
        assert_eq!(builder.machine().icount, Some(IcountSpec { shift: 4, sleep: false }));
        icount(&mut builder, "7").unwrap();
        assert_eq!(builder.machine().icount, Some(IcountSpec { shift: 7, sleep: true }));
        assert!(finish_icount(builder.machine()).is_ok());
        smp(&mut builder, "2").unwrap();
        assert!(finish_icount(builder.machine()).is_err());
        for (value, named) in [
            ("auto", "shift=auto"),
            ("shift=11", "shift"),
            ("shift=-1", "shift"),
            ("sleep=off", "shift"),
            ("1,align=on", "align"),
            ("1,rr=record,rrfile=f", "rr"),
            ("1,slep=off", "slep"),
        ] {
            let error = icount(&mut Builder::default(), value).unwrap_err().to_string();
            assert!(error.contains(named), "{value}: {error}");
        }
    }

    #[test]
    fn the_software_cpu_is_told_how_to_work() {
        let mut builder = Builder::default();
        accel(&mut builder, "tcg").unwrap();
        assert_eq!(builder.machine().translation, TranslationSpec::default());
        accel(&mut builder, "soft,translate=off,tb-size=64").unwrap();
        let translation = builder.machine().translation;
        assert_eq!((translation.translate, translation.buffer_mib), (false, 64));
        accel(&mut builder, "tcg,thread=multi").unwrap();
        accel(&mut builder, "tcg,thread=single").unwrap();
        accel(&mut builder, "soft,translate=on,check=on").unwrap();
        assert!(builder.machine().translation.check);
        for value in [
            "soft,translate=off,check=on",
            "soft,check=maybe",
            "soft,tb-size=0",
            "soft,tb-size=2000",
            "soft,translate=maybe",
            "soft,tb=1",
            "tcg,thread=some",
        ] {
            assert!(accel(&mut Builder::default(), value).is_err(), "{value}");
        }
    }

    #[test]
    fn memory_is_locked_if_asked_for() {
        let mut builder = Builder::default();
        overcommit(&mut builder, "cpu-pm=on").unwrap();
        assert!(!builder.machine().board.lock_memory);
        overcommit(&mut builder, "mem-lock=on,cpu-pm=off").unwrap();
        assert!(builder.machine().board.lock_memory);
        for value in ["cpu-pm=maybe", "mem-lock=on,cpus=1", "mem-lock=1"] {
            assert!(overcommit(&mut Builder::default(), value).is_err(), "{value}");
        }
    }

    #[test]
    fn topologies_fill_in_as_on_qemu() {
        let smp = |n, s, c, t, m| {
            topology(n, s, c, t, m).map(|s| (s.cpus, s.sockets, s.cores, s.threads))
        };
        assert_eq!(smp(Some(4), None, None, None, None), Ok((4, 1, 4, 1)));
        assert_eq!(smp(Some(4), None, None, Some(2), None), Ok((4, 1, 2, 2)));
        assert_eq!(smp(None, Some(2), Some(2), None, None), Ok((4, 2, 2, 1)));
        assert_eq!(smp(Some(2), None, None, None, Some(4)), Ok((2, 1, 4, 1)));
        assert!(smp(Some(3), None, Some(2), None, None).is_err());
        assert!(smp(Some(0), None, None, None, None).is_err());
        assert!(smp(Some(65), None, None, None, None).is_err());
        assert!(smp(Some(u32::MAX), Some(u32::MAX), Some(u32::MAX), Some(u32::MAX), None).is_err());
    }
}
