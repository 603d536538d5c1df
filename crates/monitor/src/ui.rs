//! Commands about displays and input (`schema/ui.json`).

use std::fs::File;
use std::sync::Arc;

use display::Console;
use display::image::{self, Format};
use schema::{
    ErrorClass, ImageFormat, MouseInfo, QmpError, SpiceInfo, SpiceQueryMouseMode, VncInfo, commands,
};
use tokio::sync::oneshot;

use crate::{Monitor, int};

/// The machine has no VNC server.
pub(crate) fn vnc() -> VncInfo {
    VncInfo { enabled: false, host: None, family: None, service: None, auth: None, clients: None }
}

/// The machine has no SPICE server.
pub(crate) fn spice() -> SpiceInfo {
    SpiceInfo {
        enabled: false,
        migrated: false,
        host: None,
        port: None,
        tls_port: None,
        auth: None,
        compiled_version: None,
        mouse_mode: SpiceQueryMouseMode::Client,
        channels: None,
    }
}

/// Writes what `console` shows to the file `path`.
fn dump(console: &Arc<Console>, path: &str, format: Format) -> Result<(), QmpError> {
    let failed = |e: std::io::Error| {
        let reason = e.to_string();
        let reason = reason.split(" (os error").next().unwrap_or(&reason);
        QmpError::generic(format!("failed to open file '{path}': {reason}"))
    };
    let file = File::create(path).map_err(failed)?;
    let mut view = console.view();
    view.refresh();
    image::write(view.surface(), format, file)
        .map_err(|e| QmpError::generic(format!("failed to write file '{path}': {e}")))
}

impl Monitor {
    /// Takes the picture and writes the file on a thread of its own: a file may be slow, or a pipe that
    /// nobody reads.
    pub(crate) async fn take_screendump(&self, arg: commands::Screendump) -> Result<(), QmpError> {
        let console = self.console(arg.device.as_deref(), arg.head)?;
        let format = match arg.format.unwrap_or(ImageFormat::Ppm) {
            ImageFormat::Ppm => Format::Ppm,
            ImageFormat::Png => Format::Png,
        };
        let (done, result) = oneshot::channel();
        std::thread::Builder::new()
            .name("screendump".into())
            .spawn(move || {
                // Nobody listens once the client is gone; the file is written all the same.
                let _ = done.send(dump(&console, &arg.filename, format));
            })
            .map_err(|e| QmpError::generic(format!("cannot start a thread: {e}")))?;
        result.await.unwrap_or_else(|_| Err(QmpError::generic("the picture could not be taken")))
    }

    /// The screen that a command names: output `head` of `device`, or the first there is.
    fn console(&self, device: Option<&str>, head: Option<i64>) -> Result<Arc<Console>, QmpError> {
        let consoles = self.machine.consoles();
        let Some(id) = device else {
            if head.is_some() {
                return Err(QmpError::generic("'head' must be specified together with 'device'"));
            }
            let first = consoles.first().cloned();
            return first
                .ok_or_else(|| QmpError::generic("There is no console to take a screendump from"));
        };
        let path = self.machine.device_path(id).ok_or_else(|| {
            let text = format!("Device '{id}' not found");
            QmpError::new(ErrorClass::DeviceNotFound, text)
        })?;
        let head = head.unwrap_or(0);
        let wanted = |c: &&Arc<Console>| c.device() == path && i64::from(c.head()) == head;
        consoles.iter().find(wanted).cloned().ok_or_else(|| {
            QmpError::generic(format!("Device {id} (head {head}) is not bound to a QemuConsole"))
        })
    }

    pub(crate) fn mice(&self) -> Vec<MouseInfo> {
        let mice = self.machine.mice().into_iter();
        mice.map(|mouse| MouseInfo {
            name: mouse.name.to_owned(),
            index: int(mouse.index),
            current: mouse.current,
            absolute: mouse.absolute,
        })
        .collect()
    }
}
