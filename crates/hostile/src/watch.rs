//! Panics on any thread, steps that never end, and what the guest did last.
//!
//! This is the process's, as panics are.

use std::collections::VecDeque;
use std::sync::{LazyLock, Mutex, MutexGuard, Once};
use std::time::{Duration, Instant};

/// Commands that a report shows.
const SHOWN: usize = 60;
/// A step that takes longer hangs. On a busy host sane ones take a second or two.
const HANG: Duration = Duration::from_secs(120);

struct Watch {
    script: VecDeque<String>,
    panics: Vec<String>,
    began: Instant,
    /// The step that took longest.
    longest: (Duration, String),
}

static WATCH: LazyLock<Mutex<Watch>> = LazyLock::new(|| {
    Mutex::new(Watch {
        script: VecDeque::new(),
        panics: Vec::new(),
        began: Instant::now(),
        longest: (Duration::ZERO, String::new()),
    })
});

fn lock() -> MutexGuard<'static, Watch> {
    WATCH.lock().unwrap_or_else(|e| e.into_inner())
}

/// From now on panics are noted, and a step that hangs ends the process with a report.
///
/// # Panics
/// If the host can't start a thread.
pub fn start() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            lock().panics.push(info.to_string());
            before(info);
        }));
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(Duration::from_secs(1));
                let watch = lock();
                if watch.began.elapsed() > HANG && !watch.script.is_empty() {
                    let script = text(&watch);
                    eprintln!("the last of these commands does not end:\n{script}");
                    std::process::abort();
                }
            }
        });
    });
}

/// A step begins.
pub(crate) fn step(line: &str) {
    let mut watch = lock();
    let took = watch.began.elapsed();
    if took > watch.longest.0
        && let Some(last) = watch.script.back()
    {
        watch.longest = (took, last.clone());
    }
    watch.began = Instant::now();
    if watch.script.len() == SHOWN {
        watch.script.pop_front();
    }
    // A command that writes memory has all the bytes in it.
    watch.script.push_back(line.chars().take(1000).collect());
}

/// The case is over: nothing can hang.
pub fn end() {
    lock().script.clear();
}

/// What the guest did last, a command a line.
pub(crate) fn script() -> String {
    text(&lock())
}

fn text(watch: &Watch) -> String {
    let lines: Vec<&str> = watch.script.iter().map(String::as_str).collect();
    lines.join("\n")
}

/// The panics since the last call.
pub(crate) fn panics() -> Vec<String> {
    std::mem::take(&mut lock().panics)
}

/// The longest step since the last call, and how long it took.
pub fn longest() -> (Duration, String) {
    std::mem::take(&mut lock().longest)
}
