//! `cargo xtask qtests`: QEMU's own tests of devices, against this project's program.
//!
//! Debian's source package is fetched and its test programs are built below `target/qtests`; nothing of
//! it is part of this project. A test that fails ends its program, which then runs again without it.

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
    "boot-order-test",
    "cdrom-test",
    "display-vga-test",
    "endianness-test",
    "fdc-test",
    "fw_cfg-test",
    "hd-geo-test",
    "i440fx-test",
    "ide-test",
    "pvpanic-pci-test",
    "pvpanic-test",
    "qos-test",
    "rtc-test",
    "usb-hcd-uhci-test",
    "vmgenid-test",
    "wdt_ib700-test",
];

/// A program that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(300);
/// Tests of a program that may fail before it is given up.
const FAILURES: usize = 40;

/// The tests start the program under this name, from which they know the architecture. They ask a
/// machine without anything what there is; this program has no such machine, and its PC knows. Those of
/// AHCI want a machine that has the adapter on its board; this one gets the same at the same place.
const WRAPPER: &str = r#"#!/bin/sh
left=$#
ahci=
while [ $left -gt 0 ]; do
    word=$1; shift; left=$((left - 1))
    case "$ahci$word $1" in
    "-machine none")
        shift; left=$((left - 1)); continue ;;
    "-M q35")
        shift; left=$((left - 1)); ahci=ahci
        set -- "$@" -device ich9-ahci,id=ahci,addr=1f.2; continue ;;
    "ahci-device ide-"*)
        disk=$1; shift; left=$((left - 1))
        set -- "$@" -device "$disk,bus=ahci.0"; continue ;;
    esac
    set -- "$@" "$word"
done
exec "$RHEA_QTESTED" "$@"
"#;

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
        let Results { passed, skipped, failed } = program.run(&tests)?;
        let skipped = skipped.iter().map(|test| format!("({test})"));
        let others: Vec<String> = failed.into_iter().chain(skipped).collect();
        println!("| {name} | {} | {} | {} |", passed.len(), tests.len(), others.join(", "));
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
    let build = folder.join("built");
    if !build.join("build.ninja").exists() {
        fs::create_dir_all(&build)?;
        let configured = Command::new(source.join("configure"))
            .args(["--target-list=x86_64-softmmu", "--without-default-features"])
            .args(["--disable-werror", "--disable-docs", "--enable-tools"])
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
            // With it the tests would make images in formats that there are none of here.
            .env_remove("QTEST_QEMU_IMG")
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

    fn run(&self, tests: &[String]) -> Result<Results> {
        let mut results = Results::default();
        loop {
            let without = results.failed.iter().flat_map(|test| ["-s", test.as_str()]);
            let arguments: Vec<&str> = ["--tap", "-k"].into_iter().chain(without).collect();
            let text = self.output(&arguments)?;
            for (test, rest) in text.lines().filter_map(verdict) {
                let is_new = tests.iter().any(|known| known == test) && !results.knows(test);
                let list =
                    if rest.contains("SKIP") { &mut results.skipped } else { &mut results.passed };
                if is_new {
                    list.push(test.to_owned());
                }
            }
            // They run in their order: the first without a verdict is the one that ended the program.
            let ended = tests.iter().find(|test| !results.knows(test));
            match ended {
                Some(test) if results.failed.len() < FAILURES => results.failed.push(test.clone()),
                _ => return Ok(results),
            }
        }
    }

    fn output(&self, arguments: &[&str]) -> Result<String> {
        let log = self.build.join("test.log");
        let out = fs::File::create(&log)?;
        let mut command = self.command(arguments);
        let mut child =
            command.stdin(Stdio::null()).stderr(out.try_clone()?).stdout(out).spawn()?;
        end_in_time(&mut child)?;
        Ok(String::from_utf8_lossy(&fs::read(&log)?).into_owned())
    }
}

/// How the tests of a program went.
#[derive(Default)]
struct Results {
    passed: Vec<String>,
    skipped: Vec<String>,
    failed: Vec<String>,
}

impl Results {
    fn knows(&self, test: &str) -> bool {
        [&self.passed, &self.skipped, &self.failed]
            .iter()
            .any(|list| list.iter().any(|t| t == test))
    }
}

/// A test's path, and what is said of it, in a line like `ok 3 /x86_64/rtc/check-time/bcd`.
fn verdict(line: &str) -> Option<(&str, &str)> {
    let (_, rest) = line.strip_prefix("ok ")?.split_once(' ')?;
    let rest = rest.trim_start_matches("- ");
    Some(rest.split_once(' ').unwrap_or((rest, "")))
}

/// Waits for a program, and kills it if it hangs.
fn end_in_time(child: &mut Child) -> Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < DEADLINE {
        if child.try_wait()?.is_some() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill()?;
    child.wait()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::verdict;

    #[test]
    fn verdicts_are_read() {
        assert_eq!(verdict("ok 3 /x86_64/rtc/bcd"), Some(("/x86_64/rtc/bcd", "")));
        assert_eq!(verdict("ok 1 - /a/b # SKIP no disk"), Some(("/a/b", "# SKIP no disk")));
        assert_eq!(verdict("Bail out! ERROR"), None);
    }
}
