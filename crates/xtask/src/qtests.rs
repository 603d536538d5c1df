//! `cargo xtask qtests`: QEMU's own tests of devices, against this project's program.
//!
//! Debian's source package is fetched and its test programs are built below `target/qtests`; nothing of
//! it is part of this project. Each test runs in a process of its own, since one that fails ends its
//! program.

use crate::boot::{release_binary, target};
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// The programs about what there is here.
const PROGRAMS: &[&str] = &[
    "ahci-test",
    "bios-tables-test",
    "boot-order-test",
    "boot-serial-test",
    "cdrom-test",
    "cpu-plug-test",
    "device-introspect-test",
    "device-plug-test",
    "display-vga-test",
    "drive_del-test",
    "endianness-test",
    "fdc-test",
    "fw_cfg-test",
    "hd-geo-test",
    "i440fx-test",
    "ide-test",
    "machine-none-test",
    "numa-test",
    "pvpanic-pci-test",
    "pvpanic-test",
    "qmp-cmd-test",
    "qmp-test",
    "qom-test",
    "qos-test",
    "readconfig-test",
    "rtc-test",
    "test-hmp",
    "test-x86-cpuid-compat",
    "usb-hcd-uhci-test",
    "vmgenid-test",
    "wdt_ib700-test",
];

/// A test that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(120);

/// The tests start the program under this name, from which they know the architecture. They ask a
/// machine without anything what there is; this program has no such machine, and its PC knows.
const WRAPPER: &str = r#"#!/bin/sh
left=$#
while [ $left -gt 0 ]; do
    word=$1; shift; left=$((left - 1))
    if [ "$word" = -machine ] && [ "$1" = none ]; then shift; left=$((left - 1)); continue; fi
    set -- "$@" "$word"
done
exec "$RHEA_QTESTED" "$@"
"#;

/// How a test went.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Skipped,
    Failed,
    Hung,
}

/// Builds and runs the programs that `arguments` names, or all.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let wanted: Vec<&str> = if arguments.is_empty() {
        PROGRAMS.to_vec()
    } else {
        arguments.iter().map(String::as_str).collect()
    };
    let folder = target().join("qtests");
    fs::create_dir_all(&folder)?;
    let build = build(&folder, &wanted)?;
    let wrapper = folder.join("qemu-system-x86_64");
    fs::write(&wrapper, WRAPPER)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    let binary = fs::canonicalize(release_binary()?)?;
    println!("| program | passed | of | the others |\n|---|---|---|---|");
    for name in wanted {
        let program = Program { build: &build, name, wrapper: &wrapper, binary: &binary };
        let tests = program.tests()?;
        let mut outcomes = Vec::new();
        for test in &tests {
            outcomes.push((test, program.run(test)?));
        }
        let count = |wanted| outcomes.iter().filter(|(_, outcome)| *outcome == wanted).count();
        let others: Vec<String> = outcomes
            .iter()
            .filter_map(|(test, outcome)| match outcome {
                Outcome::Passed => None,
                Outcome::Skipped => Some(format!("({test})")),
                Outcome::Failed => Some((*test).clone()),
                Outcome::Hung => Some(format!("{test} hangs")),
            })
            .collect();
        println!(
            "| {name} | {} | {} | {} |",
            count(Outcome::Passed),
            tests.len(),
            others.join(", ")
        );
    }
    println!("\nTests in parentheses skip themselves.");
    Ok(ExitCode::SUCCESS)
}

/// Fetches the source, configures it for nothing but the tests, and builds `programs`; returns the
/// folder of the build.
fn build(folder: &Path, programs: &[&str]) -> Result<PathBuf> {
    let source = match std::env::var_os("RHEA_QEMU_SOURCE") {
        Some(source) => PathBuf::from(source),
        None => fetch(folder)?,
    };
    let build = folder.join("build");
    if !build.join("build.ninja").exists() {
        fs::create_dir_all(&build)?;
        let configured = Command::new(source.join("configure"))
            .args(["--target-list=x86_64-softmmu", "--without-default-features"])
            .args(["--disable-werror", "--disable-docs", "--disable-tools"])
            .current_dir(&build)
            .stdout(Stdio::null())
            .status()?;
        if !configured.success() {
            bail!(
                "QEMU's source can't be configured; it needs ninja-build, meson, pkg-config, flex, \
                 bison, libglib2.0-dev and libpixman-1-dev"
            );
        }
    }
    let targets = programs.iter().map(|name| format!("tests/qtest/{name}"));
    let mut ninja = Command::new("ninja");
    ninja.args(["-k", "0", "-C"]).arg(&build).args(targets).stdout(Stdio::null());
    if !ninja.status().context("there is no ninja")?.success() {
        bail!("the tests do not build");
    }
    Ok(build)
}

/// The source package, unpacked once.
fn fetch(folder: &Path) -> Result<PathBuf> {
    let source = folder.join("source");
    if source.exists() {
        return Ok(source);
    }
    let lists = folder.join("lists");
    fs::create_dir_all(lists.join("partial"))?;
    let sources = folder.join("sources.list");
    fs::write(
        &sources,
        "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
         http://deb.debian.org/debian bookworm main\n",
    )?;
    let apt = |arguments: &[&str]| -> Result<()> {
        let status = Command::new("apt-get")
            .args(["-qq", "-o", "Dir::Etc::sourceparts=/dev/null", "-o"])
            .args([format!("Dir::Etc::sourcelist={}", sources.display()), "-o".to_owned()])
            .arg(format!("Dir::State::Lists={}", lists.display()))
            .args(arguments)
            .current_dir(folder)
            .status()
            .context("there is no apt-get")?;
        if !status.success() {
            bail!("apt-get {} failed; is there a network?", arguments.join(" "));
        }
        Ok(())
    };
    apt(&["update"])?;
    apt(&["source", "--download-only", "qemu"])?;
    let is_description = |path: &PathBuf| path.extension().is_some_and(|end| end == "dsc");
    let description = fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(is_description)
        .context("apt-get fetched no source package")?;
    let unpacked = Command::new("dpkg-source")
        .args(["--no-check", "-x"])
        .args([&description, &source])
        .stdout(Stdio::null())
        .status()
        .context("there is no dpkg-source; install dpkg-dev")?;
    if !unpacked.success() {
        bail!("dpkg-source failed");
    }
    Ok(source)
}

/// One of the programs.
struct Program<'a> {
    build: &'a Path,
    name: &'a str,
    wrapper: &'a Path,
    binary: &'a Path,
}

impl Program<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.build.join("tests/qtest").join(self.name));
        command
            .args(arguments)
            .current_dir(self.build)
            .env("QTEST_QEMU_BINARY", self.wrapper)
            .env("RHEA_QTESTED", self.binary);
        command
    }

    /// The paths of its tests.
    fn tests(&self) -> Result<Vec<String>> {
        let output = self.command(&["-l"]).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().filter(|line| line.starts_with('/')).map(str::to_owned).collect())
    }

    fn run(&self, test: &str) -> Result<Outcome> {
        let log = self.build.join("test.log");
        let out = fs::File::create(&log)?;
        let mut command = self.command(&["--tap", "-k", "-p", test]);
        let mut child =
            command.stdin(Stdio::null()).stderr(out.try_clone()?).stdout(out).spawn()?;
        if !ends_in_time(&mut child)? {
            return Ok(Outcome::Hung);
        }
        // Others may run with it, whose paths begin with this one's.
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        let line = text.lines().find_map(|line| {
            let rest = line.strip_prefix("ok ")?;
            let (_, rest) = rest.split_once(' ')?;
            let rest = rest.trim_start_matches("- ").strip_prefix(test)?;
            (rest.is_empty() || rest.starts_with(' ')).then(|| rest.to_owned())
        });
        Ok(match line {
            Some(rest) if rest.contains("# SKIP") => Outcome::Skipped,
            Some(_) => Outcome::Passed,
            None => Outcome::Failed,
        })
    }
}

fn ends_in_time(child: &mut Child) -> Result<bool> {
    let begin = Instant::now();
    while begin.elapsed() < DEADLINE {
        if child.try_wait()?.is_some() {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill()?;
    child.wait()?;
    Ok(false)
}
