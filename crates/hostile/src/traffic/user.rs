//! What happens outside the guest meanwhile: somebody types, looks at the screen, changes a CD.

use anyhow::Result;
use input::{Axis, Button, InputEvent, Key};

use crate::guest::Guest;
use crate::watch;

/// Does one thing.
pub(super) fn one(guest: &mut Guest<'_>) -> Result<()> {
    match guest.within(0..=3) {
        0 => look(guest),
        1 => tray(guest),
        2 => controller(guest)?,
        _ => type_and_point(guest),
    }
    Ok(())
}

/// Looks at all screens.
pub(super) fn look(guest: &mut Guest<'_>) {
    watch::step("# look at the screen");
    for console in guest.pc().consoles() {
        let mut view = console.view();
        view.refresh();
        console.text();
        console.cursor();
    }
}

fn type_and_point(guest: &mut Guest<'_>) {
    watch::step("# type and point");
    for _ in 0..guest.within(1..=40) {
        let down = guest.any();
        let event = match guest.within(0..=3) {
            0 => InputEvent::Key { key: guest.pick(Key::ALL), down },
            1 => InputEvent::Button {
                button: guest.pick(&[Button::Left, Button::Right, Button::WheelUp, Button::Side]),
                down,
            },
            2 => InputEvent::Relative {
                axis: guest.pick(&[Axis::X, Axis::Y]),
                value: guest.value() as i32,
            },
            _ => InputEvent::Absolute {
                axis: guest.pick(&[Axis::X, Axis::Y]),
                value: guest.value() as i32,
            },
        };
        guest.pc().input().send(None, &[event]);
    }
}

fn tray(guest: &mut Guest<'_>) {
    let (index, what): (u8, u8) = guest.any();
    watch::step("# move a tray");
    let pc = guest.pc();
    let drives = pc.drives();
    let Some(drive) = drives.get(usize::from(index) % drives.len().max(1)) else { return };
    // Locked, or no tray at all: that is an error of whoever asked.
    let _ = match what % 4 {
        0 => drive.open_tray(what & 0x80 != 0),
        1 | 2 => drive.close_tray(),
        _ => drive.open_tray(true),
    };
}

/// Commands of the keyboard controller and of what is behind it.
fn controller(guest: &mut Guest<'_>) -> Result<()> {
    for _ in 0..guest.within(1..=12) {
        let value = guest.pick(&[
            0xd4, 0x60, 0x20, 0xd1, 0xd3, 0xd2, 0xaa, 0xab, 0xa8, 0xae, 0xad, 0xf4, 0xf2, 0xff,
            0xf3, 0xed, 0xf0, 0xe8, 0xe9, 0xeb, 0xf8, 0xee, 0x02, 0x50,
        ]);
        let port = guest.pick(&[0x60, 0x64]);
        guest.output(port, 1, value)?;
        if guest.percent(50) {
            guest.input(port, 1)?;
        }
    }
    Ok(())
}
