//! Commands of the human monitor, as clients send them by `human-monitor-command` (`schema/misc.json`).
//!
//! There is no human monitor to type at. What is here are the subjects of `info` that say what no other command
//! says in one line, and the commands without arguments that stop a machine and let it go on. Words and line ends
//! are those of QEMU's monitor.

use schema::{QmpError, commands};

use crate::{Monitor, version};

/// A subject of `info`.
struct Subject {
    name: &'static str,
    about: &'static str,
    tell: fn(&Monitor) -> Result<String, QmpError>,
}

const SUBJECTS: &[Subject] = &[
    Subject {
        name: "jit",
        about: "show dynamic compiler info",
        tell: |monitor| Ok(monitor.translation_report()?.human_readable_text),
    },
    Subject {
        name: "kvm",
        about: "show KVM information",
        tell: |_| Ok("kvm support: not compiled".to_owned()),
    },
    Subject {
        name: "name",
        about: "show the current VM name",
        tell: |monitor| Ok(monitor.name().name.unwrap_or_default()),
    },
    Subject {
        name: "status",
        about: "show the current VM status (running|paused)",
        tell: |monitor| Ok(monitor.status_line()),
    },
    Subject {
        name: "uuid",
        about: "show the current VM UUID",
        tell: |monitor| Ok(monitor.uuid().uuid),
    },
    Subject { name: "version", about: "show the version of QEMU", tell: |_| Ok(version_line()) },
];

impl Monitor {
    /// Executes a line; gives what it prints.
    ///
    /// # Errors
    /// If there is no CPU with the index that was given. What the line itself does wrong is printed.
    pub(crate) async fn human_command(
        &self,
        arg: commands::HumanMonitorCommand,
    ) -> Result<String, QmpError> {
        let cpus = self.machine.cpus().len();
        let is_cpu = |&index: &i64| usize::try_from(index).is_ok_and(|index| index < cpus);
        if arg.cpu_index.is_some_and(|index| !is_cpu(&index)) {
            return Err(QmpError::generic("Parameter 'cpu-index' expects a CPU number"));
        }
        let words: Vec<&str> = arg.command_line.split_whitespace().collect();
        let done = match words[..] {
            [] => Ok(String::new()),
            ["info"] | ["help" | "?", "info"] => Ok(subjects()),
            ["info", subject, ..] => self.tell(subject),
            [command] => self.act(command).await,
            [command, ..] => Ok(unknown(command)),
        };
        let text = done.unwrap_or_else(|error| format!("Error: {error}"));
        Ok(text.lines().map(|line| format!("{line}\r\n")).collect())
    }

    /// Does what the word `command` alone says; nothing is printed.
    async fn act(&self, command: &str) -> Result<String, QmpError> {
        match command {
            "stop" | "s" => self.run_stop().await?,
            "cont" | "c" => self.run_cont().await?,
            "system_reset" => self.run_reset().await?,
            "system_powerdown" => self.run_powerdown().await?,
            "system_wakeup" => self.run_wakeup().await?,
            "nmi" => self.run_inject_nmi().await?,
            _ => return Ok(unknown(command)),
        }
        Ok(String::new())
    }

    fn tell(&self, subject: &str) -> Result<String, QmpError> {
        match SUBJECTS.iter().find(|known| known.name == subject) {
            Some(known) => (known.tell)(self),
            None => Ok(unknown(&format!("info {subject}"))),
        }
    }
}

fn unknown(command: &str) -> String {
    format!("unknown command: '{command}'")
}

fn subjects() -> String {
    SUBJECTS
        .iter()
        .map(|subject| format!("info {}  -- {}\n", subject.name, subject.about))
        .collect()
}

fn version_line() -> String {
    let schema::VersionInfo { qemu, package } = version();
    format!("{}.{}.{}{package}", qemu.major, qemu.minor, qemu.micro)
}
