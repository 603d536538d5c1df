//! All options, one item each, and the [`Builder`] that collects what they say.

mod acpitable;
mod backend;
mod board;
pub(crate) mod drives;
mod firmware;
mod machine;
mod object;
mod process;
mod rtc;
mod smbios;

use ::machine::spec::{Graphics, MachineSpec, NamedChardev, QtestLogSpec, QtestSpec, SerialSpec};
use chardev::ChardevSpec;

use crate::config::{Config, DisplaySpec, MonitorSpec};
use ::options::{OptionError, Properties};

/// RAM of a machine whose command line does not say: 128 MiB, in bytes.
pub const DEFAULT_MEMORY: u64 = 128 << 20;

/// Whether an option is followed by a value, and how help shows it.
#[derive(Clone, Copy, Debug)]
pub enum Takes {
    /// No value.
    Nothing,
    /// A value with this syntax.
    Value(&'static str),
}

/// One option.
pub struct OptionItem {
    /// Its name without the dash.
    pub name: &'static str,
    /// Other names.
    pub aliases: &'static [&'static str],
    /// What follows it.
    pub takes: Takes,
    /// One line of help.
    pub help: &'static str,
    /// Applies it.
    pub apply: fn(&mut Builder, &str) -> Result<(), OptionError>,
}

/// Every option, in the order of `-help`.
pub const OPTIONS: &[OptionItem] = &[
    option("help", &["h", "?"], Takes::Nothing, "show this help", process::help),
    option("version", &[], Takes::Nothing, "show the version", process::version),
    option("demo", &[], Takes::Nothing, "boot a small built-in guest and show QMP", process::demo),
    option(
        "machine",
        &["M"],
        Takes::Value("[type=]name[,accel=soft|tcg][,usb=on|off][,acpi=on|off][,smm=on|off]..."),
        "machine type (pc) and its properties; 'help' lists them",
        board::machine,
    ),
    option(
        "accel",
        &[],
        Takes::Value(
            "[accel=]name[,thread=single|multi][,translate=on|off][,tb-size=MiB][,check=on|off]",
        ),
        "what runs the CPUs: soft (also called tcg), or qtest, which runs none",
        machine::accel,
    ),
    option(
        "icount",
        &[],
        Takes::Value("[shift=]n[,sleep=on|off]"),
        "an instruction takes 2^n ns of guest time, 0 to 10",
        machine::icount,
    ),
    option("cpu", &[], Takes::Value("model"), "CPU model; 'help' lists them", machine::cpu),
    option(
        "smp",
        &[],
        Takes::Value("[cpus=]n[,sockets=,cores=,threads=,maxcpus=]"),
        "number of CPUs, 1 to 64",
        machine::smp,
    ),
    option(
        "overcommit",
        &[],
        Takes::Value("[mem-lock=on|off][,cpu-pm=on|off]"),
        "lock all memory of the program (cpu-pm changes nothing)",
        machine::overcommit,
    ),
    option("m", &[], Takes::Value("[size=]megs"), "RAM (default 128M)", machine::memory),
    option(
        "object",
        &[],
        Takes::Value("memory-backend-ram,id=id,size=bytes[,prop=value]..."),
        "memory for -machine memory-backend=",
        object::object,
    ),
    option("name", &[], Takes::Value("[guest=]name"), "name of the machine", machine::name),
    option("uuid", &[], Takes::Value("uuid"), "UUID of the machine", machine::uuid),
    option(
        "kernel",
        &[],
        Takes::Value("file"),
        "boot this bzImage, PVH or multiboot kernel",
        machine::kernel,
    ),
    option("initrd", &[], Takes::Value("file"), "initial RAM disk", machine::initrd),
    option("append", &[], Takes::Value("text"), "kernel command line", machine::append),
    option(
        "bios",
        &[],
        Takes::Value("file"),
        "the BIOS (default bios-256k.bin of SeaBIOS)",
        firmware::bios,
    ),
    option(
        "L",
        &[],
        Takes::Value("path"),
        "look for firmware here first; 'help' lists the directories",
        firmware::search,
    ),
    option(
        "boot",
        &[],
        Takes::Value("[order=drives][,once=drives][,menu=on|off][,splash=][,splash-time=]..."),
        "what to boot from: floppy (a), disk (c), CD-ROM (d), network (n)",
        firmware::boot,
    ),
    option(
        "option-rom",
        &[],
        Takes::Value("[romfile=]file[,bootindex=n]"),
        "a ROM that firmware runs before it boots",
        firmware::option_rom,
    ),
    option(
        "no-fd-bootchk",
        &[],
        Takes::Nothing,
        "boot from a floppy disk whatever its first sector says",
        firmware::no_floppy_check,
    ),
    option(
        "fw_cfg",
        &[],
        Takes::Value("[name=]name,file=|string="),
        "an item for firmware and guest",
        firmware::fw_cfg,
    ),
    option(
        "smbios",
        &[],
        Takes::Value("file=f|type=n[,field=value]..."),
        "what the SMBIOS tables say of types 0, 1, 2, 3, 4, 8, 11, 17 and 41",
        smbios::smbios,
    ),
    option(
        "acpitable",
        &[],
        Takes::Value("{data|file}=file[:file]...[,sig=][,rev=][,oem_id=]..."),
        "one more ACPI table, without its header or with it",
        acpitable::acpitable,
    ),
    option(
        "debugcon",
        &[],
        Takes::Value("dev"),
        "where the debug console at port 0xe9 goes",
        firmware::debugcon,
    ),
    option(
        "global",
        &[],
        Takes::Value("driver.property=value"),
        "a property of all devices of a kind",
        firmware::global,
    ),
    option("S", &[], Takes::Nothing, "do not start the CPUs (use 'cont')", machine::paused),
    option("no-reboot", &[], Takes::Nothing, "end instead of rebooting", machine::no_reboot),
    option(
        "rtc",
        &[],
        Takes::Value("[base=utc|localtime|date][,clock=host|rt|vm][,driftfix=none|slew]"),
        "what the real-time clock shows, and what moves it",
        rtc::rtc,
    ),
    option("no-acpi", &[], Takes::Nothing, "no ACPI (-machine acpi=off)", machine::no_acpi),
    option("no-hpet", &[], Takes::Nothing, "no high precision event timer", machine::no_hpet),
    option(
        "watchdog-action",
        &[],
        Takes::Value("action"),
        "what an expired watchdog does (-action watchdog=)",
        machine::watchdog_action,
    ),
    option("no-shutdown", &[], Takes::Nothing, "stop instead of ending", machine::no_shutdown),
    option(
        "action",
        &[],
        Takes::Value("reboot=|shutdown=|panic=|watchdog="),
        "what the guest's own ends do",
        machine::action,
    ),
    option(
        "drive",
        &[],
        Takes::Value("[file=f][,if=type][,bus=][,unit=][,index=][,media=disk|cdrom][,id=]..."),
        "a drive, with a device of its own unless if=none",
        drives::drive,
    ),
    option("hda", &[], Takes::Value("file"), "disk image as IDE disk 0", drives::hda),
    option("hdb", &[], Takes::Value("file"), "disk image as IDE disk 1", drives::hdb),
    option("hdc", &[], Takes::Value("file"), "disk image as IDE disk 2", drives::hdc),
    option("hdd", &[], Takes::Value("file"), "disk image as IDE disk 3", drives::hdd),
    option("cdrom", &[], Takes::Value("file"), "image in the CD-ROM drive", drives::cdrom),
    option("fda", &[], Takes::Value("file"), "image in floppy drive 0", drives::fda),
    option("fdb", &[], Takes::Value("file"), "image in floppy drive 1", drives::fdb),
    option(
        "snapshot",
        &[],
        Takes::Nothing,
        "write to temporary files instead of the images",
        drives::snapshot,
    ),
    option(
        "device",
        &[],
        Takes::Value("driver[,prop=value]..."),
        "a device; 'help' lists the drivers",
        backend::device,
    ),
    option("serial", &[], Takes::Value("dev"), "where a serial port goes", backend::serial),
    option(
        "chardev",
        &[],
        Takes::Value("backend,id=id[,prop=value]..."),
        "a character device: stdio, file, null, socket, pty, ringbuf",
        backend::chardev,
    ),
    option("qmp", &[], Takes::Value("dev"), "a QMP monitor", backend::qmp),
    option("qmp-pretty", &[], Takes::Value("dev"), "a QMP monitor, indented", backend::qmp_pretty),
    option(
        "mon",
        &[],
        Takes::Value("[chardev=]id,mode=control[,pretty=on]"),
        "a QMP monitor on a character device",
        backend::mon,
    ),
    option("monitor", &[], Takes::Value("none"), "the human monitor: none", backend::monitor),
    option("qtest", &[], Takes::Value("dev"), "commands of a test program", backend::qtest),
    option(
        "qtest-log",
        &[],
        Takes::Value("file|none"),
        "record them (default: on standard error)",
        backend::qtest_log,
    ),
    option("audio", &[], Takes::Value("none"), "the sound card: none", machine::audio),
    option("audiodev", &[], Takes::Value("none,id=id"), "a sound backend", machine::audiodev),
    option("usb", &[], Takes::Nothing, "a USB host controller", machine::usb),
    option(
        "usbdevice",
        &[],
        Takes::Value("keyboard|mouse|tablet"),
        "a USB host controller with this device",
        backend::usb_device,
    ),
    option("nodefaults", &[], Takes::Nothing, "no default devices", machine::nodefaults),
    option("no-user-config", &[], Takes::Nothing, "no configuration files", process::nothing),
    option(
        "nographic",
        &[],
        Takes::Nothing,
        "serial port on stdio, no display",
        machine::nographic,
    ),
    option(
        "display",
        &[],
        Takes::Value("none|curses"),
        "where the screen is shown: nowhere (the default), or on the terminal",
        machine::display,
    ),
    option(
        "vnc",
        &[],
        Takes::Value("none"),
        "no VNC server: the same as -display none",
        machine::vnc,
    ),
    option("curses", &[], Takes::Nothing, "the same as -display curses", machine::curses),
    option(
        "vga",
        &[],
        Takes::Value("std|virtio|none"),
        "the graphics adapter; 'help' lists them",
        machine::vga,
    ),
    option("net", &["nic"], Takes::Value("none"), "the network: none", machine::net),
    option("parallel", &[], Takes::Value("dev"), "where a parallel port goes", backend::parallel),
    option("pidfile", &[], Takes::Value("file"), "write the process id", process::pidfile),
    option("daemonize", &[], Takes::Nothing, "detach from the terminal", process::daemonize),
    option("d", &[], Takes::Value("item,..."), "log these items; 'help' lists them", process::log),
    option("D", &[], Takes::Value("file"), "log to a file", process::log_file),
    option(
        "dfilter",
        &[],
        Takes::Value("range,..."),
        "log about guest code at these addresses alone",
        process::log_filter,
    ),
    option(
        "perfmap",
        &[],
        Takes::Nothing,
        "write /tmp/perf-PID.map, so that perf knows translated code",
        process::perf_map,
    ),
    option(
        "readconfig",
        &[],
        Takes::Value("file"),
        "read options from a file",
        process::readconfig,
    ),
];

const fn option(
    name: &'static str,
    aliases: &'static [&'static str],
    takes: Takes,
    help: &'static str,
    apply: fn(&mut Builder, &str) -> Result<(), OptionError>,
) -> OptionItem {
    OptionItem { name, aliases, takes, help, apply }
}

/// Collects what the options say; [`Builder::finish`] adds the defaults.
#[derive(Debug, Default)]
pub struct Builder {
    /// What was said so far.
    pub(crate) config: Config,
    /// A text to print instead of running.
    pub(crate) print: Option<String>,
    /// `-nodefaults`.
    pub(crate) no_defaults: bool,
    /// `-nographic`.
    pub(crate) no_graphic: bool,
    /// `-machine graphics=off`.
    pub(crate) no_graphics: bool,
    /// `-snapshot`.
    pub(crate) snapshot: bool,
    /// `-vga`.
    pub(crate) graphics: Option<Graphics>,
    /// Number of monitors made without an id of their own.
    pub(crate) compat_monitors: usize,
    /// `-qtest` and `-qtest-log`.
    pub(crate) qtest: Option<String>,
    pub(crate) qtest_log: QtestLogSpec,
    /// The first accelerator that is to be had, and why another is not.
    pub(crate) accelerator: Option<::machine::spec::Accelerator>,
    pub(crate) missing_accelerator: Option<String>,
    /// `-object`, and which of them `-machine` names.
    pub(crate) memory_backends: Vec<object::MemoryBackend>,
    pub(crate) memory_backend: Option<String>,
    /// `-initrd` and `-append`, which need `-kernel`.
    pub(crate) initrd: Option<std::path::PathBuf>,
    pub(crate) append: Option<String>,
}

/// Takes a text of at most `N` bytes out, filled up with zeroes.
fn take_padded<const N: usize>(
    options: &mut Properties,
    key: &'static str,
) -> Result<Option<[u8; N]>, OptionError> {
    let Some(text) = options.take(key) else { return Ok(None) };
    let mut padded = [0; N];
    let room = padded.get_mut(..text.len()).ok_or_else(|| {
        OptionError::new(format!(
            "{}: User specified {key} value is bigger than {N} bytes in size",
            options.option()
        ))
    })?;
    room.copy_from_slice(text.as_bytes());
    Ok(Some(padded))
}

impl Builder {
    /// The machine so far.
    pub(crate) fn machine(&mut self) -> &mut MachineSpec {
        &mut self.config.machine
    }

    /// Adds a character device.
    pub(crate) fn add_chardev(&mut self, id: &str, spec: ChardevSpec) -> Result<(), OptionError> {
        if self.config.machine.chardevs.iter().any(|c| c.id == id) {
            return Err(OptionError::new(format!("Duplicate ID '{id}' for chardev")));
        }
        self.config.machine.chardevs.push(NamedChardev { id: id.to_owned(), spec });
        Ok(())
    }

    /// Adds a monitor.
    pub(crate) fn add_monitor(&mut self, chardev: String, pretty: bool) -> Result<(), OptionError> {
        if self.config.monitors.iter().any(|m| m.chardev == chardev) {
            return Err(OptionError::new(format!("chardev '{chardev}' is already in use")));
        }
        self.config.monitors.push(MonitorSpec { chardev, pretty });
        Ok(())
    }

    /// Adds the defaults and checks what only the whole can show.
    pub(crate) fn finish(mut self) -> Result<Config, OptionError> {
        self.finish_boot()?;
        self.machine().no_graphic = self.no_graphic || self.no_graphics;
        machine::finish_graphics(&mut self);
        machine::finish_accelerator(&mut self)?;
        object::finish(&mut self)?;
        if self.machine().memory == 0 {
            self.machine().memory = DEFAULT_MEMORY;
        }
        if self.machine().serials.is_empty() && (self.no_graphic || !self.no_defaults) {
            let spec = backend::default_serial(self.no_graphic);
            self.add_chardev("serial0", spec)?;
            self.machine().serials.push(SerialSpec::Chardev("serial0".to_owned()));
        }
        if self.machine().parallels.is_empty() && !self.no_defaults {
            self.add_chardev("parallel0", ChardevSpec::Null)?;
            self.machine().parallels.push(SerialSpec::Chardev("parallel0".to_owned()));
        }
        if let Some(chardev) = self.qtest.take() {
            let log = std::mem::take(&mut self.qtest_log);
            self.machine().qtest = Some(QtestSpec { chardev, log });
        }
        self.check_chardevs()?;
        machine::finish_icount(self.machine())?;
        let (no_defaults, snapshot) = (self.no_defaults, self.snapshot);
        drives::finish(self.machine(), no_defaults, snapshot);
        let is_stdio = |chardev: &NamedChardev| match &chardev.spec {
            ChardevSpec::Mux(inner) => matches!(**inner, ChardevSpec::Stdio { .. }),
            other => matches!(other, ChardevSpec::Stdio { .. }),
        };
        if self.config.daemonize && self.config.machine.chardevs.iter().any(is_stdio) {
            return Err(OptionError::new(
                "-daemonize: cannot use stdio with -daemonize; use a socket, a file or a pty",
            ));
        }
        if self.config.display == DisplaySpec::Curses {
            let user = if self.config.daemonize { Some("-daemonize") } else { None };
            let stdio = self.config.machine.chardevs.iter().any(is_stdio).then_some("stdio");
            if let Some(user) = user.or(stdio) {
                return Err(OptionError::new(format!(
                    "-display curses: cannot use the terminal together with {user}"
                )));
            }
        }
        Ok(self.config)
    }

    fn finish_boot(&mut self) -> Result<(), OptionError> {
        let (initrd, append) = (self.initrd.take(), self.append.take());
        match &mut self.machine().boot {
            Some(boot) => {
                boot.initrd = initrd;
                boot.command_line = append.unwrap_or_default();
                Ok(())
            }
            None if append.is_some() => {
                Err(OptionError::new("-append only allowed with -kernel option"))
            }
            None if initrd.is_some() => {
                Err(OptionError::new("-initrd only allowed with -kernel option"))
            }
            None => Ok(()),
        }
    }

    /// Whatever names a character device names one that there is, which nobody else has.
    fn check_chardevs(&self) -> Result<(), OptionError> {
        let machine = &self.config.machine;
        let monitors = self.config.monitors.iter().map(|m| ("-mon", &m.chardev));
        let qtest = machine.qtest.iter().map(|qtest| ("-qtest", &qtest.chardev));
        let ports = |option, ports: &'_ [SerialSpec]| {
            let ids = ports.iter().filter_map(|port| match port {
                SerialSpec::Chardev(id) => Some(id.clone()),
                SerialSpec::None => None,
            });
            ids.map(move |id| (option, id)).collect::<Vec<_>>()
        };
        let serials = ports("-serial", &machine.serials);
        let parallels = ports("-parallel", &machine.parallels);
        let rest = serials.iter().chain(&parallels).map(|(option, id)| (*option, id));
        let mut had: Vec<(&str, &String)> = Vec::new();
        for (user, id) in monitors.chain(qtest).chain(rest) {
            let Some(chardev) = machine.chardevs.iter().find(|chardev| chardev.id == *id) else {
                return Err(OptionError::new(format!("{user}: chardev \"{id}\" not found")));
            };
            // Ports may share one that is multiplexed.
            let is_shared = matches!(chardev.spec, ChardevSpec::Mux(_));
            let is_taken = |(other, taken): &(&str, &String)| {
                *taken == id && !(is_shared && matches!(*other, "-serial" | "-parallel"))
            };
            if had.iter().any(is_taken) {
                let reason = format!("{user}: chardev '{id}' is already in use");
                return Err(OptionError::new(reason));
            }
            had.push((user, id));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_book_describes_every_option_and_no_other() {
        let page = include_str!("../../../../docs/src/command-line.md");
        // What is set in code, begins with one dash and is in the first column of a table.
        let described: BTreeSet<&str> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `-")?.split(" | ").next())
            .flat_map(|column| column.split("`, `-"))
            .map(|usage| usage.trim_end_matches('`').split([' ', '[']).next().unwrap_or(usage))
            .collect();
        let known: BTreeSet<&str> = OPTIONS
            .iter()
            .flat_map(|item| item.aliases.iter().copied().chain([item.name]))
            .filter(|name| !matches!(*name, "h" | "?"))
            .collect();
        assert_eq!(described, known);
    }
}
