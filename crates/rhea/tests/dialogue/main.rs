//! A recorded dialogue: the same bytes go to QEMU's monitor and to ours, and the answers have the
//! same shape, the same error classes and texts, and the same events.
//!
//! `tests/qmp-dialogue/sessions` says what is sent and with which options; `recorded` holds what
//! Debian's QEMU 7.2 answered; `expected-differences.json` lists, with reasons, where Rhea answers
//! otherwise on purpose. A listed difference that is gone fails the test too.
//!
//! `RHEA_RECORD=1 cargo test -p rhea --test dialogue` writes the recordings anew.

mod session;
mod shape;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Map, Value};
use session::Session;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use testkit::VmBuilder;

fn directory() -> PathBuf {
    testkit::workspace().join("tests/qmp-dialogue")
}

fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| path.display().to_string())
}

fn recorded(session: &Session) -> PathBuf {
    directory().join("recorded").join(format!("{}.json", session.name))
}

/// The QEMU to compare with, if it is the release that was recorded.
fn recorded_release() -> Result<Option<PathBuf>> {
    let Some(peer) = testkit::peer() else { return Ok(None) };
    let vm = VmBuilder::new(&peer)?.args(["-S"]).spawn();
    let version = vm?.qmp()?.query("query-version")?;
    Ok((version["qemu"]["major"] == 7 && version["qemu"]["minor"] == 2).then_some(peer))
}

/// The recordings are what QEMU answers today.
#[test]
fn recordings_are_true() {
    testkit::run("recordings_are_true", || {
        let Some(peer) = recorded_release()? else {
            testkit::skip("recordings_are_true", "qemu-system-x86_64 7.2 is not installed");
            return Ok(());
        };
        let sessions = Session::read_all(&directory().join("sessions"))?;
        let steps: usize = sessions.iter().map(Session::len).sum();
        ensure!(steps >= 60, "a dialogue of {steps} requests only");
        let mut report = String::new();
        for session in &sessions {
            let recording = session.record(&peer)?;
            if std::env::var_os("RHEA_RECORD").is_some() {
                let text = serde_json::to_string_pretty(&recording)?;
                std::fs::write(recorded(session), format!("{text}\n"))?;
                continue;
            }
            let stored = read_json(&recorded(session))?;
            compare(session, &stored, &recording, &mut Vec::new(), &mut report)?;
        }
        ensure!(report.is_empty(), "QEMU does not answer as recorded:\n{report}");
        Ok(())
    });
}

#[test]
fn answers_are_as_recorded() {
    testkit::run("answers_are_as_recorded", || {
        let binary = testkit::binary(env!("CARGO_BIN_EXE_rhea"));
        let version =
            VmBuilder::new(&binary)?.args(["-S"]).spawn()?.qmp()?.query("query-version")?;
        let is_rhea = version["package"]
            .as_str()
            .is_some_and(|package| package.to_lowercase().contains("rhea"));
        let mut expected = if is_rhea { Expected::read_all()? } else { Vec::new() };
        let mut report = String::new();
        for session in Session::read_all(&directory().join("sessions"))? {
            let recording = session.record(&binary)?;
            let stored = read_json(&recorded(&session))?;
            compare(&session, &stored, &recording, &mut expected, &mut report)?;
        }
        for unused in expected.iter().filter(|expected| !expected.seen) {
            writeln!(
                report,
                "{} {}: listed, but there is no difference",
                unused.step, unused.path
            )?;
        }
        ensure!(report.is_empty(), "answers differ from QEMU's:\n{report}");
        Ok(())
    });
}

/// An entry of `expected-differences.json`. A `*` at the end of `step` or `path` stands for any
/// rest; `ours`, where it is given, has to be what is found.
struct Expected {
    step: String,
    path: String,
    ours: Option<Value>,
    seen: bool,
}

impl Expected {
    fn read_all() -> Result<Vec<Self>> {
        let file = read_json(&directory().join("expected-differences.json"))?;
        let entries = file.as_array().context("a list")?;
        entries
            .iter()
            .map(|entry| {
                let text = |name: &str| {
                    let text = entry[name].as_str().filter(|text| !text.is_empty());
                    text.map(str::to_owned).with_context(|| format!("{entry} lacks {name}"))
                };
                text("reason")?;
                let (step, path) = (text("step")?, text("path")?);
                Ok(Self { step, path, ours: entry.get("ours").cloned(), seen: false })
            })
            .collect()
    }

    fn covers(&self, step: &str, difference: &shape::Difference) -> bool {
        let fits = |pattern: &str, text: &str| match pattern.strip_suffix('*') {
            Some(prefix) => text.starts_with(prefix),
            None => text == pattern,
        };
        fits(&self.step, step)
            && fits(&self.path, &difference.path)
            && self.ours.as_ref().is_none_or(|ours| *ours == difference.ours)
    }
}

fn compare(
    session: &Session,
    theirs: &Value,
    ours: &Map<String, Value>,
    expected: &mut [Expected],
    report: &mut String,
) -> Result<()> {
    let theirs = theirs.as_object().context("a recording is an object")?;
    if theirs.keys().ne(ours.keys()) {
        bail!("{}: the recording has other steps; record it anew", session.name);
    }
    for (name, theirs) in theirs {
        let step = format!("{}/{name}", session.name);
        let mut found = Vec::new();
        answers(theirs, &ours[name], &mut found);
        for difference in found {
            let mut known = expected.iter_mut().filter(|entry| entry.covers(&step, &difference));
            match known.next() {
                Some(entry) => entry.seen = true,
                None => writeln!(
                    report,
                    "{step} {}: QEMU {}, here {}",
                    difference.path, difference.theirs, difference.ours
                )?,
            }
        }
    }
    Ok(())
}

/// Compares the answers to one step one by one, in order.
fn answers(theirs: &Value, ours: &Value, found: &mut Vec<shape::Difference>) {
    let (Some(one), Some(other)) = (theirs.as_array(), ours.as_array()) else {
        shape::differences("", theirs, ours, found);
        return;
    };
    for index in 0..one.len().max(other.len()) {
        let pick = |list: &[Value]| list.get(index).cloned().unwrap_or_default();
        shape::differences(&format!("[{index}]"), &pick(one), &pick(other), found);
    }
}
