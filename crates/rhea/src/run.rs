//! Runs what a command line asks for.

use std::fs::File;
use std::io::{LineWriter, Write};
use std::sync::Arc;

use accel::log::Log;
use anyhow::{Context, Result};
use bus::ShutdownCause;
use cli::{Config, DisplaySpec, LogSpec};
use machine::Machine;
use machine::run::{Request, RunHandle};

use qmp::events::EventBus;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tui::Terminal;

use crate::daemon;
use crate::demo::Demo;
use crate::monitors::Monitors;
use crate::pidfile::PidFile;

/// Runs a machine until it ends; returns the exit status of the process.
pub(crate) fn run(mut config: Config) -> Result<u8> {
    if config.daemonize {
        daemon::begin()?;
    }
    // A pipe for the log is opened when somebody reads it; a signal may end the wait for that.
    let log = Arc::new(open_log(&config.log)?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    // From now on they end the machine in good order, however early they come.
    let signals = {
        let _context = runtime.enter();
        EndSignals::new().context("cannot listen to signals")?
    };
    let demo = config.demo.then(|| Demo::prepare(&mut config)).transpose()?;
    let _pidfile = config.pidfile.as_deref().map(PidFile::create).transpose()?;
    let events = EventBus::new();
    let sink = {
        let events = Arc::clone(&events);
        Arc::new(move |event| events.send(&monitor::to_qmp(event)))
    };
    let monitors = Monitors::open(&mut config)?;
    let (machine, owner) = Machine::new(&config.machine, sink, log)?;
    let machine = Arc::new(machine);
    let server = monitors.serve(machine.clone(), events).context("cannot serve monitors")?;
    if config.daemonize {
        daemon::ready()?;
    }
    let terminal = (config.display == DisplaySpec::Curses)
        .then(|| show(&machine, quitter(&machine, runtime.handle())))
        .transpose()?;
    if let Some(demo) = &demo {
        demo.start_tour(quitter(&machine, runtime.handle()))?;
    }
    let autostart = !config.machine.start_paused;
    let code = runtime.block_on(async {
        let signals = tokio::spawn(signals.end(machine.run().clone()));
        let code = owner.serve(autostart).await;
        signals.abort();
        code
    });
    drop(terminal);
    server.end();
    if demo.is_some_and(|demo| demo.has_failed()) {
        return Ok(1);
    }
    Ok(u8::try_from(code & 0xff).unwrap_or(1))
}

/// Ends the machine because somebody at this host wants it, from any thread.
fn quitter(machine: &Machine, runtime: &Handle) -> impl Fn() + Send + 'static + use<> {
    let (run, runtime) = (machine.run().clone(), runtime.clone());
    move || {
        let run = run.clone();
        runtime.spawn(async move {
            // A machine that is ending already refuses; that is as well.
            let _ = run.ask(Request::Quit(ShutdownCause::HostUi)).await;
        });
    }
}

/// Shows the machine on the terminal; its user can end it there.
fn show(machine: &Machine, quit: impl Fn() + Send + 'static) -> Result<Terminal> {
    Ok(Terminal::start(machine.consoles(), Arc::clone(machine.input()), quit)?)
}

fn open_log(spec: &LogSpec) -> Result<Log> {
    let out: Box<dyn Write + Send> = match &spec.file {
        None => Box::new(std::io::stderr()),
        Some(path) => {
            let file = File::create(path);
            Box::new(file.with_context(|| format!("-D: cannot open '{}'", path.display()))?)
        }
    };
    let mut log = Log::new(&spec.topics, out).with_ranges(spec.ranges.clone());
    if spec.perf_map {
        let path = format!("/tmp/perf-{}.map", std::process::id());
        let file =
            File::create(&path).with_context(|| format!("-perfmap: cannot open '{path}'"))?;
        log = log.with_perf_map(Box::new(LineWriter::new(file)));
    }
    Ok(log)
}

/// The signals by which the process is asked to end.
struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl EndSignals {
    /// Takes them over from the host's defaults. Called within the event loop that will wait for them.
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Ends the machine in good order at the first of them.
    async fn end(mut self, run: RunHandle) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
        // A machine that is ending already refuses; that is as well.
        let _ = run.ask(Request::Quit(ShutdownCause::HostSignal)).await;
    }
}
