//! Commands about displays and input (`schema/ui.json`).

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use ::input::{Axis, Button, InputEvent, Key, Target};
use display::Console;
use display::image::{self, Format};
use machine::run::RunState;
use schema::{
    ErrorClass, ImageFormat, InputAxis, InputButton, InputMoveEvent, KeyValue, MouseInfo, QmpError,
    SpiceInfo, SpiceQueryMouseMode, VncInfo, commands,
};
use tokio::sync::oneshot;

use crate::{Monitor, int};

/// Pause between the keys of send-key, unless told otherwise.
const HOLD_TIME: Duration = Duration::from_millis(10);

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
        let mice = self.machine.input().pointers().into_iter();
        mice.map(|mouse| MouseInfo {
            name: mouse.name.to_owned(),
            index: int(mouse.index),
            current: mouse.current,
            absolute: mouse.absolute,
        })
        .collect()
    }

    pub(crate) fn send_key(&self, arg: &commands::SendKey) -> Result<(), QmpError> {
        let hold = match arg.hold_time {
            None | Some(0) => HOLD_TIME,
            Some(ms) => Duration::from_millis(ms.try_into().map_err(|_| {
                QmpError::generic("Parameter 'hold-time' expects a number of milliseconds")
            })?),
        };
        if !self.takes_input() {
            return Ok(());
        }
        let keys: Vec<Key> = arg.keys.iter().filter_map(key).collect();
        let typed = self.machine.input().type_keys(&keys, hold);
        typed.map_err(|full| QmpError::generic(full.to_string()))
    }

    pub(crate) fn send_event(&self, arg: &commands::InputSendEvent) -> Result<(), QmpError> {
        let hub = self.machine.input();
        let target = match &arg.device {
            None => None,
            Some(device) => {
                let console = self.console(Some(device), arg.head)?;
                Some(Target { device: console.device().to_owned(), head: console.head() })
            }
        };
        if !self.takes_input() {
            return Err(QmpError::generic("VM not running"));
        }
        for event in &arg.events {
            let (kind, name) = match event {
                schema::InputEvent::Key(_) => (::input::EventKinds::KEY, "key"),
                schema::InputEvent::Btn(_) => (::input::EventKinds::BUTTON, "btn"),
                schema::InputEvent::Rel(_) => (::input::EventKinds::RELATIVE, "rel"),
                schema::InputEvent::Abs(_) => (::input::EventKinds::ABSOLUTE, "abs"),
            };
            if !hub.takes(target.as_ref(), kind) {
                return Err(QmpError::generic(format!(
                    "Input handler not found for event type {name}"
                )));
            }
        }
        let events: Vec<InputEvent> = arg.events.iter().filter_map(input_event).collect();
        hub.send(target.as_ref(), &events);
        Ok(())
    }

    /// Whether keys and pointers are heard: a guest that sleeps can be woken up by them.
    fn takes_input(&self) -> bool {
        let state = self.machine.run().published().run_state();
        matches!(state, RunState::Running | RunState::Suspended)
    }
}

/// The event without its wrapping; `None` for a key that is none.
fn input_event(event: &schema::InputEvent) -> Option<InputEvent> {
    Some(match event {
        schema::InputEvent::Key(event) => {
            InputEvent::Key { key: key(&event.data.key)?, down: event.data.down }
        }
        schema::InputEvent::Btn(event) => {
            InputEvent::Button { button: button(event.data.button), down: event.data.down }
        }
        schema::InputEvent::Rel(event) => {
            let (axis, value) = movement(&event.data);
            InputEvent::Relative { axis, value }
        }
        schema::InputEvent::Abs(event) => {
            let (axis, value) = movement(&event.data);
            InputEvent::Absolute { axis, value }
        }
    })
}

fn movement(event: &InputMoveEvent) -> (Axis, i32) {
    let axis = match event.axis {
        InputAxis::X => Axis::X,
        InputAxis::Y => Axis::Y,
    };
    (axis, event.value.clamp(i32::MIN.into(), i32::MAX.into()) as i32)
}

fn button(button: InputButton) -> Button {
    match button {
        InputButton::Left => Button::Left,
        InputButton::Middle => Button::Middle,
        InputButton::Right => Button::Right,
        InputButton::WheelUp => Button::WheelUp,
        InputButton::WheelDown => Button::WheelDown,
        InputButton::Side => Button::Side,
        InputButton::Extra => Button::Extra,
        InputButton::WheelLeft => Button::WheelLeft,
        InputButton::WheelRight => Button::WheelRight,
    }
}

fn key(value: &KeyValue) -> Option<Key> {
    match value {
        KeyValue::Number(number) => u8::try_from(number.data).ok().and_then(Key::from_number),
        KeyValue::Qcode(code) => Key::from_name(code.data.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use schema::QKeyCode;

    use super::*;

    #[test]
    fn the_contract_names_the_keys_that_there_are() {
        let named: Vec<_> =
            QKeyCode::ALL.iter().filter_map(|k| Key::from_name(k.as_str())).collect();
        assert_eq!(named, Key::ALL);
        let unnamed = QKeyCode::ALL.iter().filter(|k| Key::from_name(k.as_str()).is_none());
        assert_eq!(unnamed.collect::<Vec<_>>(), [&QKeyCode::Unmapped]);
    }
}
