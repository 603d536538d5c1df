//! The i8042 keyboard controller of a PC with a PS/2 keyboard and mouse, and port 92h.
//!
//! Follows the IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device
//! Controller". Bytes wait in the controller's, keyboard's and mouse's queues, in that order of
//! precedence, until the one-byte output buffer is free.
//!
//! The A20 gate ([`A20Gate`]) is shared with port 92h.

mod a20;
mod keyboard;
mod mouse;
mod port92;
mod ps2;
#[cfg(test)]
mod tests;
mod translate;

use std::sync::{Arc, Mutex, OnceLock, Weak};

use bus::{
    AddressSpace, Clock, Device, IrqLine, MachineControl, MapError, Notice, ShutdownCause, Timer,
    TimerQueue, WakeCause,
};
use input::{EventKinds, InputEvent, InputHub, InputSink, SinkHandle, SinkSpec};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::isa::{PortDevice, map_ports};
use crate::lock;
pub use a20::A20Gate;
use keyboard::Keyboard;
use mouse::Mouse;
pub use port92::{Port92, Port92State};
use ps2::Queue;

/// Data port.
pub const DATA_PORT: u16 = 0x60;
/// Status when read, command when written.
pub const COMMAND_PORT: u16 = 0x64;

/// Names of the devices, as monitors list them.
const KEYBOARD_NAME: &str = "QEMU PS/2 Keyboard";
const MOUSE_NAME: &str = "QEMU PS/2 Mouse";

const STATUS_FULL: u8 = 1 << 0;
const STATUS_TESTED: u8 = 1 << 2;
const STATUS_COMMAND: u8 = 1 << 3;
const STATUS_UNLOCKED: u8 = 1 << 4;
const STATUS_FROM_MOUSE: u8 = 1 << 5;

/// The controller's command byte.
const MODE_KEYBOARD_IRQ: u8 = 1 << 0;
const MODE_MOUSE_IRQ: u8 = 1 << 1;
const MODE_KEYBOARD_OFF: u8 = 1 << 4;
const MODE_MOUSE_OFF: u8 = 1 << 5;
const MODE_TRANSLATE: u8 = 1 << 6;

/// Output port.
const OUT_RUN: u8 = 1 << 0;
const OUT_A20: u8 = 1 << 1;
const OUT_KEYBOARD_FULL: u8 = 1 << 4;
const OUT_MOUSE_FULL: u8 = 1 << 5;
/// Lines of the keyboard's connector, which idle high, and unused ones.
const OUT_HIGH: u8 = 0xcc;

/// Commands.
mod command {
    pub(super) const READ_MODE: u8 = 0x20;
    pub(super) const READ_RAM: u8 = 0x21;
    pub(super) const READ_RAM_LAST: u8 = 0x3f;
    pub(super) const WRITE_MODE: u8 = 0x60;
    pub(super) const WRITE_RAM_LAST: u8 = 0x7f;
    pub(super) const MOUSE_OFF: u8 = 0xa7;
    pub(super) const MOUSE_ON: u8 = 0xa8;
    pub(super) const TEST_MOUSE: u8 = 0xa9;
    pub(super) const SELF_TEST: u8 = 0xaa;
    pub(super) const TEST_KEYBOARD: u8 = 0xab;
    pub(super) const KEYBOARD_OFF: u8 = 0xad;
    pub(super) const KEYBOARD_ON: u8 = 0xae;
    pub(super) const READ_INPUT_PORT: u8 = 0xc0;
    pub(super) const READ_OUTPUT_PORT: u8 = 0xd0;
    pub(super) const WRITE_OUTPUT_PORT: u8 = 0xd1;
    pub(super) const WRITE_KEYBOARD_BUFFER: u8 = 0xd2;
    pub(super) const WRITE_MOUSE_BUFFER: u8 = 0xd3;
    pub(super) const WRITE_MOUSE: u8 = 0xd4;
    pub(super) const A20_OFF: u8 = 0xdd;
    pub(super) const A20_ON: u8 = 0xdf;
    pub(super) const PULSE: u8 = 0xf0;
}

/// Who a byte in the output buffer is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Origin {
    Keyboard,
    Mouse,
}

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042State {
    mode: u8,
    ram: [u8; 31],
    /// Flags of the status register that are not derived.
    tested: bool,
    last_was_command: bool,
    a20: bool,
    /// The command whose data byte comes next.
    awaits: Option<u8>,
    output: Option<(u8, Origin)>,
    /// The byte that was read last, which the data port shows until there is another.
    last: u8,
    /// A byte that says that a key goes up waits for the key's code to be translated.
    released: bool,
    /// The controller's own answers.
    answers: Queue,
    /// Bytes that the guest put into the mouse's side itself.
    mouse_answers: Queue,
    keyboard: Keyboard,
    mouse: Mouse,
}

impl Default for I8042State {
    fn default() -> Self {
        Self {
            mode: MODE_KEYBOARD_IRQ | MODE_MOUSE_IRQ,
            ram: [0; 31],
            tested: false,
            last_was_command: true,
            a20: true,
            awaits: None,
            output: None,
            last: 0,
            released: false,
            answers: Queue::default(),
            mouse_answers: Queue::default(),
            keyboard: Keyboard::default(),
            mouse: Mouse::default(),
        }
    }
}

impl State for I8042State {
    const NAME: &'static str = "i8042";
    const VERSION: u32 = 4;

    fn validate(&self) -> Result<(), String> {
        let takes_data = |command: u8| {
            let is_ram = (command::WRITE_MODE..=command::WRITE_RAM_LAST).contains(&command);
            is_ram || (command::WRITE_OUTPUT_PORT..=command::WRITE_MOUSE).contains(&command)
        };
        if let Some(command) = self.awaits.filter(|&command| !takes_data(command)) {
            return Err(format!("command {command:#x} takes no data"));
        }
        self.answers.validate()?;
        self.mouse_answers.validate()?;
        self.keyboard.validate()?;
        self.mouse.validate()
    }
}

impl I8042State {
    /// Moves the next byte into the free output buffer.
    fn fill(&mut self) {
        if self.output.is_some() {
            return;
        }
        self.output = if let Some(byte) = self.answers.pop() {
            Some((byte, Origin::Keyboard))
        } else if let Some(byte) = self.mouse_answers.pop() {
            Some((byte, Origin::Mouse))
        } else if let Some(byte) = self.next_of_keyboard() {
            Some((byte, Origin::Keyboard))
        } else if self.mode & MODE_MOUSE_OFF == 0 {
            self.mouse.next().map(|byte| (byte, Origin::Mouse))
        } else {
            None
        };
    }

    fn next_of_keyboard(&mut self) -> Option<u8> {
        let Self { mode, keyboard, released, .. } = self;
        if *mode & MODE_KEYBOARD_OFF != 0 {
            return None;
        }
        if *mode & MODE_TRANSLATE == 0 {
            *released = false;
            return keyboard.output.next();
        }
        translate::next(released, || keyboard.output.next())
    }

    fn status(&self) -> u8 {
        let mut status = STATUS_UNLOCKED;
        match self.output {
            Some((_, Origin::Keyboard)) => status |= STATUS_FULL,
            Some((_, Origin::Mouse)) => status |= STATUS_FULL | STATUS_FROM_MOUSE,
            None => {}
        }
        if self.tested {
            status |= STATUS_TESTED;
        }
        if self.last_was_command {
            status |= STATUS_COMMAND;
        }
        status
    }

    fn output_port(&self) -> u8 {
        let a20 = if self.a20 { OUT_A20 } else { 0 };
        let full = match self.output {
            Some((_, Origin::Keyboard)) => OUT_KEYBOARD_FULL,
            Some((_, Origin::Mouse)) => OUT_MOUSE_FULL,
            None => 0,
        };
        OUT_HIGH | OUT_RUN | a20 | full
    }

    /// Levels of the keyboard's and the mouse's interrupt.
    fn interrupts(&self) -> (bool, bool) {
        match self.output {
            Some((_, Origin::Keyboard)) => (self.mode & MODE_KEYBOARD_IRQ != 0, false),
            Some((_, Origin::Mouse)) => (false, self.mode & MODE_MOUSE_IRQ != 0),
            None => (false, false),
        }
    }

    /// A byte for the command port; tells whether it asks for a reset.
    fn command(&mut self, byte: u8) -> bool {
        self.last_was_command = true;
        self.awaits = None;
        match byte {
            command::READ_MODE => self.answers.push(&[self.mode]),
            command::READ_RAM..=command::READ_RAM_LAST => {
                self.answers.push(&[self.ram[usize::from(byte & 0x1f) - 1]]);
            }
            command::WRITE_MODE..=command::WRITE_RAM_LAST
            | command::WRITE_OUTPUT_PORT
            | command::WRITE_KEYBOARD_BUFFER
            | command::WRITE_MOUSE_BUFFER
            | command::WRITE_MOUSE => self.awaits = Some(byte),
            command::MOUSE_OFF => self.mode |= MODE_MOUSE_OFF,
            command::MOUSE_ON => self.mode &= !MODE_MOUSE_OFF,
            command::TEST_MOUSE | command::TEST_KEYBOARD => self.answers.push(&[0]),
            command::SELF_TEST => {
                self.tested = true;
                self.answers.push(&[0x55]);
            }
            command::KEYBOARD_OFF => self.mode |= MODE_KEYBOARD_OFF,
            command::KEYBOARD_ON => self.mode &= !MODE_KEYBOARD_OFF,
            command::READ_INPUT_PORT => self.answers.push(&[0x80]),
            command::READ_OUTPUT_PORT => self.answers.push(&[self.output_port()]),
            command::A20_OFF => self.a20 = false,
            command::A20_ON => self.a20 = true,
            // Pulses the output port's low bits that are zero; bit 0 is the CPU's reset.
            command::PULSE.. => return byte & OUT_RUN == 0,
            _ => {}
        }
        false
    }

    /// A byte for the data port; tells whether it asks for a reset.
    fn data(&mut self, byte: u8) -> bool {
        self.last_was_command = false;
        match self.awaits.take() {
            None => {
                // Writing to a device switches it on.
                self.mode &= !MODE_KEYBOARD_OFF;
                self.keyboard.command(byte);
            }
            Some(command::WRITE_MODE) => self.mode = byte,
            Some(command::WRITE_OUTPUT_PORT) => {
                self.a20 = byte & OUT_A20 != 0;
                return byte & OUT_RUN == 0;
            }
            Some(command::WRITE_KEYBOARD_BUFFER) => self.answers.push(&[byte]),
            Some(command::WRITE_MOUSE_BUFFER) => self.mouse_answers.push(&[byte]),
            Some(command::WRITE_MOUSE) => {
                self.mode &= !MODE_MOUSE_OFF;
                self.mouse.command(byte);
            }
            Some(ram) => self.ram[usize::from(ram & 0x1f) - 1] = byte,
        }
        false
    }
}

/// The controller.
pub struct I8042 {
    keyboard_irq: IrqLine,
    mouse_irq: IrqLine,
    a20: Arc<A20Gate>,
    control: Arc<dyn MachineControl>,
    clock: Clock,
    /// When a key repeats.
    timer: Timer,
    state: Mutex<I8042State>,
    /// Where the devices' events come from.
    inputs: OnceLock<[(Arc<dyn InputSink>, SinkHandle); 2]>,
}

/// The controller's interrupts.
pub struct I8042Lines {
    /// The keyboard's interrupt.
    pub keyboard: IrqLine,
    /// The mouse's interrupt.
    pub mouse: IrqLine,
}

impl I8042 {
    /// A controller that resets by way of `control`; its keyboard and mouse get their events from `hub`, and
    /// keys that are held repeat by `timers`.
    pub fn new(
        lines: I8042Lines,
        a20: Arc<A20Gate>,
        control: Arc<dyn MachineControl>,
        hub: &Arc<InputHub>,
        timers: &TimerQueue,
    ) -> Arc<Self> {
        let I8042Lines { keyboard, mouse } = lines;
        let this = Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let timer = timers.timer(move || {
                if let Some(controller) = this.upgrade() {
                    controller.repeat();
                }
            });
            Self {
                keyboard_irq: keyboard,
                mouse_irq: mouse,
                a20,
                control,
                clock: timers.clock().clone(),
                timer,
                state: Mutex::default(),
                inputs: OnceLock::new(),
            }
        });
        let weak = Arc::downgrade(&this);
        let pointing = EventKinds::BUTTON | EventKinds::RELATIVE;
        let inputs = [(KEYBOARD_NAME, EventKinds::KEY), (MOUSE_NAME, pointing)].map(
            |(name, kinds)| -> (Arc<dyn InputSink>, SinkHandle) {
                let sink: Arc<dyn InputSink> = Arc::new(Hands(weak.clone()));
                let spec = SinkSpec { name, kinds, console: None };
                let handle = hub.register(spec, Arc::downgrade(&sink));
                (sink, handle)
            },
        );
        let _ = this.inputs.set(inputs);
        this
    }

    /// Maps the ports.
    ///
    /// # Errors
    /// Never in a space of 64 Ki ports.
    pub fn attach(self: &Arc<Self>, ports: &AddressSpace) -> Result<(), MapError> {
        for port in [DATA_PORT, COMMAND_PORT] {
            map_ports(ports, port, 1, self.clone())?;
        }
        Ok(())
    }

    fn drive(&self, state: &I8042State) {
        let (keyboard, mouse) = state.interrupts();
        self.keyboard_irq.set(keyboard);
        self.mouse_irq.set(mouse);
    }

    /// A key is held for long enough.
    fn repeat(&self) {
        let mut state = lock(&self.state);
        state.keyboard.repeat(self.clock.now_ns());
        state.fill();
        self.drive(&state);
        self.arm(&state);
    }

    fn arm(&self, state: &I8042State) {
        match state.keyboard.repeats_at() {
            at if at == self.timer.deadline() => {}
            Some(at) => self.timer.arm(at),
            None => self.timer.disarm(),
        }
    }
}

/// The user's hands on the keyboard and the mouse.
struct Hands(Weak<I8042>);

impl InputSink for Hands {
    fn event(&self, event: &InputEvent) {
        let Some(controller) = self.0.upgrade() else { return };
        controller.control.notify(Notice::Wake(WakeCause::User));
        let mut state = lock(&controller.state);
        match *event {
            InputEvent::Key { key, down } => {
                state.keyboard.key(key, down, controller.clock.now_ns());
            }
            InputEvent::Button { button, down } => state.mouse.button(button, down),
            InputEvent::Relative { axis, value } => state.mouse.movement(axis, value),
            // It knows of no positions.
            InputEvent::Absolute { .. } => {}
        }
    }

    fn sync(&self) {
        let Some(controller) = self.0.upgrade() else { return };
        let mut state = lock(&controller.state);
        state.mouse.report();
        state.fill();
        controller.drive(&state);
        controller.arm(&state);
    }
}

impl PortDevice for I8042 {
    fn read_port(&self, port: u16) -> u8 {
        let mut state = lock(&self.state);
        if port == COMMAND_PORT {
            return state.status();
        }
        let Some((byte, _)) = state.output.take() else { return state.last };
        state.last = byte;
        // The lines fall between two bytes, so that each is an edge.
        self.drive(&state);
        state.fill();
        self.drive(&state);
        byte
    }

    fn write_port(&self, port: u16, value: u8) {
        let mut state = lock(&self.state);
        state.a20 = self.a20.is_open();
        let reset = if port == COMMAND_PORT { state.command(value) } else { state.data(value) };
        state.fill();
        self.drive(&state);
        self.arm(&state);
        self.a20.set(state.a20);
        drop(state);
        if reset {
            self.control.request_reset(ShutdownCause::GuestReset);
        }
    }
}

impl Device for I8042 {
    fn id(&self) -> String {
        "i8042".into()
    }

    fn reset(&self) {
        let mut state = lock(&self.state);
        *state = I8042State::default();
        self.drive(&state);
        self.arm(&state);
        self.a20.set(state.a20);
    }

    fn save(&self) -> Saved {
        let mut state = lock(&self.state);
        state.a20 = self.a20.is_open();
        Saved::new(&*state)
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let restored: I8042State = saved.decode()?;
        let mut state = lock(&self.state);
        *state = restored;
        self.drive(&state);
        self.arm(&state);
        self.a20.set(state.a20);
        Ok(())
    }
}
