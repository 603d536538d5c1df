//! Runs what a command line asks for.

use std::sync::Arc;

use anyhow::{Context, Result};
use bus::ShutdownCause;
use cli::Config;
use machine::Machine;
use machine::run::{Request, RunHandle};

use qmp::events::EventBus;
use tokio::signal::unix::{SignalKind, signal};

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
    let (machine, owner) = Machine::new(&config.machine, sink)?;
    let machine = Arc::new(machine);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let server = monitors.serve(machine.clone(), events).context("cannot serve monitors")?;
    if config.daemonize {
        daemon::ready()?;
    }
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
    server.end();
    Ok(u8::try_from(code & 0xff).unwrap_or(1))
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
