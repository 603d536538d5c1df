//! Sessions: what to send to a monitor, and the recording of what it answers.

use crate::shape;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::Duration;
use testkit::{Qmp, VmBuilder, bare};

/// A file of `tests/qmp-dialogue/sessions`.
pub(crate) struct Session {
    /// The file's stem.
    pub(crate) name: String,
    /// The command line behind the common options; `@DIR@` stands for the machine's directory.
    options: Vec<String>,
    /// Whether to negotiate before the first step.
    negotiate: bool,
    /// Whether to record what is returned as it is instead of by its shape.
    values: bool,
    steps: Vec<Step>,
}

struct Step {
    name: String,
    /// Written one after the other, with a pause between.
    chunks: Vec<Vec<u8>>,
}

impl Session {
    /// Reads all sessions, sorted by name.
    pub(crate) fn read_all(directory: &Path) -> Result<Vec<Self>> {
        let mut paths: Vec<_> =
            std::fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        paths.sort();
        paths
            .iter()
            .map(|path| Self::read(path).with_context(|| path.display().to_string()))
            .collect()
    }

    fn read(path: &Path) -> Result<Self> {
        let file: Value = serde_json::from_slice(&std::fs::read(path)?)?;
        let list = |name: &str| file[name].as_array().cloned().unwrap_or_default();
        let session = Self {
            name: path.file_stem().and_then(|stem| stem.to_str()).context("a name")?.to_owned(),
            options: list("options")
                .iter()
                .map(|option| option.as_str().map(str::to_owned).context("options are strings"))
                .collect::<Result<_>>()?,
            negotiate: file["negotiate"].as_bool().context("negotiate is a boolean")?,
            values: file["values"].as_bool().unwrap_or_default(),
            steps: list("steps").iter().map(Step::read).collect::<Result<_>>()?,
        };
        let mut names: Vec<&str> = session.steps.iter().map(|step| step.name.as_str()).collect();
        names.sort_unstable();
        ensure!(names.windows(2).all(|pair| pair[0] != pair[1]), "two steps of one name");
        Ok(session)
    }

    /// Number of steps.
    pub(crate) fn len(&self) -> usize {
        self.steps.len()
    }

    /// Holds the session with a fresh machine. The recording has a member for each step.
    pub(crate) fn record(&self, binary: &Path) -> Result<Map<String, Value>> {
        let builder = VmBuilder::new(binary)?;
        let directory = builder.path("").to_string_lossy().trim_end_matches('/').to_owned();
        for disk in ["disk.raw", "disk2.raw"] {
            std::fs::write(builder.path(disk), vec![0; 1 << 20])?;
        }
        std::fs::write(builder.path("spin.elf"), bare::elf(bare::SPIN))?;
        let options = self.options.iter().map(|option| option.replace("@DIR@", &directory));
        let mut vm = builder.args(["-S", "-m", "128"]).args(options).spawn()?;
        let mut qmp = vm.connect_raw("qmp.sock")?;
        let mut recording = Map::new();
        recording.insert("greeting".to_owned(), shape::of(qmp.greeting()));
        if self.negotiate {
            qmp = qmp.negotiated().with_context(|| vm.stderr())?;
        }
        for (index, step) in self.steps.iter().enumerate() {
            let answers = step.hold(&mut qmp, index, self.values).with_context(|| {
                format!("step {}/{}; so far:\n{}", self.name, step.name, qmp.transcript())
            })?;
            recording.insert(step.name.clone(), answers);
        }
        Ok(recording)
    }
}

impl Step {
    fn read(value: &Value) -> Result<Self> {
        let object = value.as_object().context("a step is an object")?;
        let name = object.get("name").and_then(Value::as_str).context("a step has a name")?;
        let mut chunks = Vec::new();
        for (key, value) in object.iter().filter(|(key, _)| *key != "name") {
            chunks = match (key.as_str(), value) {
                ("request", value) => vec![format!("{value}\n").into_bytes()],
                ("send", Value::String(text)) => vec![text.clone().into_bytes()],
                ("send", Value::Array(texts)) => {
                    texts.iter().filter_map(|text| Some(text.as_str()?.into())).collect()
                }
                ("hex", Value::String(digits)) => vec![bytes(digits)?],
                // [text, count] pairs, one after the other
                ("repeat", Value::Array(pairs)) => vec![
                    pairs
                        .iter()
                        .filter_map(|pair| {
                            let count = usize::try_from(pair[1].as_u64()?).ok()?;
                            Some(pair[0].as_str()?.repeat(count))
                        })
                        .collect::<String>()
                        .into_bytes(),
                ],
                _ => bail!("step {name}: {key} is not understood"),
            };
        }
        ensure!(!chunks.is_empty(), "step {name} sends nothing");
        Ok(Self { name: name.to_owned(), chunks })
    }

    /// Sends the step and a harmless command behind it; all that is answered before that one's
    /// reply belongs to the step.
    fn hold(&self, qmp: &mut Qmp, index: usize, values: bool) -> Result<Value> {
        for (index, chunk) in self.chunks.iter().enumerate() {
            if index > 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
            qmp.send(chunk)?;
        }
        let marker = json!({"execute": "query-name", "id": format!("marker {index}")});
        let mut answers = Vec::new();
        // It may fail where the step ended the session.
        let sent = qmp.send(format!("{marker}\n").as_bytes());
        loop {
            let message = match qmp.message(Duration::from_secs(20)) {
                Ok(Some(message)) => message,
                Ok(None) => bail!("the monitor went silent"),
                Err(_) => {
                    answers.push(json!("closed"));
                    break;
                }
            };
            if message["id"] == marker["id"] {
                sent?;
                break;
            }
            push(&mut answers, answer(&message, values));
        }
        Ok(Value::Array(answers))
    }
}

/// Errors, ids and events are compared as they are, but for the time.
fn answer(message: &Value, values: bool) -> Value {
    let members = message.as_object().into_iter().flatten();
    members
        .filter(|(name, _)| *name != "timestamp")
        .map(|(name, value)| {
            let shaped = name == "return" && !values;
            (name.clone(), if shaped { shape::of(value) } else { value.clone() })
        })
        .collect()
}

/// Appends an answer; one that repeats the last is counted in its member `times`.
fn push(answers: &mut Vec<Value>, mut answer: Value) {
    if let Some(last) = answers.last_mut() {
        let times = last["times"].as_u64().unwrap_or(1);
        let mut once = last.clone();
        if let Some(members) = once.as_object_mut() {
            members.shift_remove("times");
        }
        if once == answer {
            answer["times"] = json!(times + 1);
            *last = answer;
            return;
        }
    }
    answers.push(answer);
}

fn bytes(digits: &str) -> Result<Vec<u8>> {
    digits
        .split_whitespace()
        .map(|pair| u8::from_str_radix(pair, 16).with_context(|| format!("{pair} is no byte")))
        .collect()
}
