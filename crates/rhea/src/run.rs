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
use tokio::signal::unix::{SignalKind, signal};
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
    let demo = config.demo.then(|| Demo::prepare(&mut config)).transpose()?;
    let _pidfile = config.pidfile.as_deref().map(PidFile::create).transpose()?;
    let events = EventBus::new();
    let sink = {
        let events = Arc::clone(&events);
        Arc::new(move |event| events.send(&monitor::to_qmp(event)))
    };
    let monitors = Monitors::open(&mut config)?;
    let log = Arc::new(open_log(&config.log)?);
    let (machine, owner) = Machine::new(&config.machine, sink, log)?;
    let machine = Arc::new(machine);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let server = monitors.serve(machine.clone(), events).context("cannot serve monitors")?;
    if config.daemonize {
        daemon::ready()?;
    }
    let terminal = (config.display == DisplaySpec::Curses)
        .then(|| show(&machine, runtime.handle().clone()))
        .transpose()?;
    if let Some(demo) = &demo {
        demo.start_tour()?;
    }
    let autostart = !config.machine.start_paused;
    let code = runtime.block_on(async {
        let signals = tokio::spawn(end_on_signals(machine.run().clone()));
        let code = owner.serve(autostart).await;
        signals.abort();
        code
    });
    drop(terminal);
    server.end();
    Ok(u8::try_from(code & 0xff).unwrap_or(1))
}

/// Shows the machine on the terminal; its user can end it there.
fn show(machine: &Machine, runtime: Handle) -> Result<Terminal> {
    let run = machine.run().clone();
    let quit = move || {
        let run = run.clone();
        runtime.spawn(async move {
            // A machine that is ending already refuses; that is as well.
            let _ = run.ask(Request::Quit(ShutdownCause::HostUi)).await;
        });
    };
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

/// Ends the machine in good order when the process is asked to end.
async fn end_on_signals(run: RunHandle) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = hangup.recv() => {}
    }
    // A machine that is ending already refuses; that is as well.
    let _ = run.ask(Request::Quit(ShutdownCause::HostSignal)).await;
    Ok(())
}
