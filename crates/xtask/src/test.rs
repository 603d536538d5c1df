//! `cargo xtask test`: everything, real guests included where their packages can be had.
//!
//! Documentation tests come first, then all others, so that the runner's own summary is the last
//! thing to read. What was skipped is said loudly just before it.

use crate::{guest, guests, workspace};
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// Runs the tests; `arguments` go to the test runner.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let target = workspace().join("target");
    fs::create_dir_all(&target)?;
    let skipped = target.join("skipped-tests");
    let _ = fs::remove_file(&skipped);
    if let Err(error) = guest::make(false) {
        println!("SKIPPING tests with real guests: {error:#}");
    }
    if let Err(error) = guests::make(&[]) {
        println!("SKIPPING tests with images: {error:#}");
    }
    if let Err(error) = python_environment(&target) {
        println!("SKIPPING tests with qemu.qmp: {error:#}");
    }

    let documentation = cargo(&skipped).args(["test", "--workspace", "--doc"]).status()?;
    let nextest = cargo(&skipped).args(["nextest", "--version"]).output()?.status.success();
    let runner: &[&str] = if nextest {
        &["nextest", "run", "--workspace"]
    } else {
        &["test", "--workspace", "--all-targets", "--no-fail-fast"]
    };
    let mut child = cargo(&skipped)
        .args(runner)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    // cargo test reports on standard output, nextest on standard error.
    let stderr = child.stderr.take().context("a pipe")?;
    let on_stderr = std::thread::spawn(move || pass_on(stderr));
    let mut summary = pass_on(child.stdout.take().context("a pipe")?);
    summary.extend(on_stderr.join().unwrap_or_default());
    let status = child.wait()?;

    let skipped = fs::read_to_string(&skipped).unwrap_or_default();
    let mut skipped: Vec<&str> = skipped.lines().collect();
    skipped.sort_unstable();
    skipped.dedup();
    if !skipped.is_empty() {
        println!("\n{} TESTS DID NOT RUN:", skipped.len());
        skipped.iter().for_each(|line| println!("{line}"));
    }
    if !documentation.success() {
        println!("\nDOCUMENTATION TESTS FAILED, see above");
    }
    println!("\n{}", summarise(&summary, status.success()));
    let success = status.success() && documentation.success();
    Ok(if success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn cargo(skipped: &Path) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(workspace()).env("RHEA_SKIPPED", skipped);
    command
}

/// Prints what comes and keeps the lines that sum up.
fn pass_on(reader: impl Read) -> Vec<String> {
    let mut kept = Vec::new();
    for line in BufReader::new(reader).lines().map_while(Result::ok) {
        println!("{line}");
        if line.starts_with("test result: ") || line.trim_start().starts_with("Summary [") {
            kept.push(line);
        }
    }
    kept
}

/// nextest has one summary; cargo test has one for each program, which are added up. Neither has
/// one if the tests don't compile.
fn summarise(lines: &[String], success: bool) -> String {
    if let Some(line) = lines.iter().rfind(|line| !line.starts_with("test result: ")) {
        return line.clone();
    }
    let count = |word: &str| -> u64 {
        lines
            .iter()
            .flat_map(|line| line.split([';', '.']))
            .filter_map(|part| part.trim().strip_suffix(word)?.trim().parse::<u64>().ok())
            .sum()
    };
    let (passed, failed, ignored) = (count("passed"), count("failed"), count("ignored"));
    let verdict = if success { "ok" } else { "FAILED" };
    format!("test result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored")
}

/// Installs what `tests/qemu-qmp/requirements.txt` lists into `target/qmp-venv`, once.
fn python_environment(target: &Path) -> Result<()> {
    let environment = target.join("qmp-venv");
    let requirements = workspace().join("tests/qemu-qmp/requirements.txt");
    let stamp = environment.join("requirements.txt");
    let wanted = fs::read_to_string(&requirements)?;
    if fs::read_to_string(&stamp).is_ok_and(|present| present == wanted) {
        return Ok(());
    }
    let _ = fs::remove_dir_all(&environment);
    let made = Command::new("python3").args(["-m", "venv"]).arg(&environment).output();
    if !made.context("python3 is not here")?.status.success() {
        bail!("python3 -m venv failed; install python3-venv");
    }
    let status = Command::new(environment.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check", "--requirement"])
        .arg(&requirements)
        .status()?;
    if !status.success() {
        bail!("pip cannot install qemu.qmp; is there a network?");
    }
    fs::write(stamp, wanted)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::summarise;

    #[test]
    fn results_of_cargo_test_are_added_up() {
        let lines = [
            "test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured; finished in 0.1s",
            "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; finished in 0.1s",
        ];
        let sum = summarise(&lines.map(str::to_owned), false);
        assert_eq!(sum, "test result: FAILED. 6 passed; 3 failed; 1 ignored");
    }

    #[test]
    fn summary_of_nextest_is_kept() {
        let line = "     Summary [   1.4s] 4 tests run: 4 passed, 0 skipped".to_owned();
        assert_eq!(summarise(std::slice::from_ref(&line), true), line);
    }

    #[test]
    fn tests_that_do_not_compile_have_failed() {
        assert!(summarise(&[], false).starts_with("test result: FAILED."));
    }
}
