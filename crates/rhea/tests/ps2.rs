//! The keyboard controller, its keyboard and its mouse, driven by qtest and compared with QEMU's.
//!
//! Where ours does more, as the hardware's reference has it, there is no comparison: RAM of the controller,
//! commands of scan code set 3, commands in place of arguments, sending again, scaling, remote mode, and
//! answers to commands that no mouse knows.

use anyhow::Result;
use serde_json::{Value, json};
use testkit::qtest::Qtest;

const DATA: u16 = 0x60;
const COMMAND: u16 = 0x64;

/// What is seen, with what was done for it.
type Log = Vec<(String, String)>;

/// Does the same with both programs and compares what is seen.
fn compare(name: &str, act: impl Fn(&mut Qtest, &mut Log) -> Result<()>) {
    testkit::run(name, || {
        let Some(peer) = testkit::peer() else {
            testkit::skip(name, "there is no qemu-system-x86_64");
            return Ok(());
        };
        let run = |binary: &std::path::Path| -> Result<Log> {
            let mut machine = Qtest::start_running(binary, &[""; 0])?;
            let mut log = Log::new();
            act(&mut machine, &mut log)?;
            Ok(log)
        };
        let ours = run(&testkit::binary(env!("CARGO_BIN_EXE_rhea")))?;
        let theirs = run(&peer)?;
        let differences: Vec<String> = ours
            .iter()
            .zip(&theirs)
            .filter(|(ours, theirs)| ours != theirs)
            .map(|(ours, theirs)| format!("{}: {:?}, not {:?}", ours.0, ours.1, theirs.1))
            .collect();
        anyhow::ensure!(differences.is_empty(), "{}", differences.join("\n"));
        anyhow::ensure!(ours.len() == theirs.len() && !ours.is_empty());
        Ok(())
    });
}

/// The bytes that wait, those of the mouse with an `m`.
fn output(machine: &mut Qtest) -> Result<String> {
    let mut bytes = Vec::new();
    while bytes.len() < 100 {
        let status = machine.inb(COMMAND)?;
        if status & 1 == 0 {
            break;
        }
        let from = if status & 0x20 == 0 { "" } else { "m" };
        bytes.push(format!("{from}{:02x}", machine.inb(DATA)?));
    }
    Ok(bytes.join(" "))
}

/// Gives the controller a command with data; the status and what comes of it.
fn command(machine: &mut Qtest, command: u8, data: &[u8]) -> Result<String> {
    machine.outb(COMMAND, command)?;
    for &byte in data {
        machine.outb(DATA, byte)?;
    }
    // Whether data or a command came last, QEMU does not tell.
    let status = machine.inb(COMMAND)? & !8;
    Ok(format!("{status:02x}: {}", output(machine)?))
}

fn keyboard(machine: &mut Qtest, bytes: &[u8]) -> Result<String> {
    let mut answers = Vec::new();
    for &byte in bytes {
        machine.outb(DATA, byte)?;
        answers.push(output(machine)?);
    }
    Ok(answers.join(" / "))
}

fn mouse(machine: &mut Qtest, bytes: &[u8]) -> Result<String> {
    let mut answers = Vec::new();
    for &byte in bytes {
        machine.outb(COMMAND, 0xd4)?;
        machine.outb(DATA, byte)?;
        answers.push(output(machine)?);
    }
    Ok(answers.join(" / "))
}

/// Sends events; what comes of them.
fn events(machine: &mut Qtest, events: Value) -> Result<String> {
    machine.qmp().execute("input-send-event", json!({ "events": events }))?;
    output(machine)
}

fn key(machine: &mut Qtest, name: &str, down: bool) -> Result<String> {
    let key = json!({ "type": "qcode", "data": name });
    events(machine, json!([{ "type": "key", "data": { "key": key, "down": down } }]))
}

fn button(name: &str, down: bool) -> Value {
    json!({ "type": "btn", "data": { "button": name, "down": down } })
}

fn movement(axis: &str, value: i32) -> Value {
    json!({ "type": "rel", "data": { "axis": axis, "value": value } })
}

#[test]
fn the_controller_and_both_devices_answer_commands_as_qemus() {
    compare("ps2_commands", |machine, log| {
        let mut note = |what: String, seen: String| log.push((what, seen));
        for code in (0xa7..=0xff).filter(|&code| {
            // What resets, waits for data or says what is not compared.
            code < 0xf0 && !(0xd1..=0xd4).contains(&code) || code & 1 == 1 && code >= 0xf0
        }) {
            note(format!("command {code:02x}"), command(machine, code, &[])?);
            note("mode".into(), command(machine, 0x20, &[])?);
        }
        for (code, data) in [(0xd2, 0x5a), (0xd3, 0x5b), (0xd1, 0xdf), (0x60, 0x47), (0x60, 0x03)] {
            note(format!("command {code:02x} {data:02x}"), command(machine, code, &[data])?);
            note("mode".into(), command(machine, 0x20, &[])?);
        }
        // Those with an argument come later: QEMU takes a command for one.
        for byte in (0x00..=0xff).filter(|byte| !matches!(byte, 0xed | 0xf0 | 0xf3 | 0xf7..=0xfe)) {
            note(format!("keyboard {byte:02x}"), keyboard(machine, &[byte])?);
            note(format!("keyboard {byte:02x}, reset"), keyboard(machine, &[0xff])?);
        }
        for set in 0..=4 {
            note(format!("set {set}"), keyboard(machine, &[0xf0, set, 0xf0, 0])?);
            keyboard(machine, &[0xff])?;
        }
        note("LEDs".into(), keyboard(machine, &[0xed, 7, 0xed, 0])?);
        note("rate".into(), keyboard(machine, &[0xf3, 0x7f, 0xf3, 0])?);
        // QEMU's has no resolution and no rate before its first reset.
        mouse(machine, &[0xff])?;
        for byte in [0xe6, 0xe8, 0xe9, 0xea, 0xeb, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xff] {
            note(format!("mouse {byte:02x}"), mouse(machine, &[byte])?);
            if matches!(byte, 0xe8 | 0xf3) {
                note(format!("mouse {byte:02x} 3"), mouse(machine, &[3])?);
            }
            note(format!("mouse {byte:02x}, status"), mouse(machine, &[0xe9])?);
            note(format!("mouse {byte:02x}, reset"), mouse(machine, &[0xff])?);
        }
        note("wrap".into(), mouse(machine, &[0xee, 0x12, 0xe9, 0xf4, 0xec, 0xe9])?);
        for rates in [[200, 100, 80], [200, 200, 80], [100, 100, 80]] {
            for rate in rates {
                mouse(machine, &[0xf3, rate])?;
            }
            note(format!("{rates:?}"), mouse(machine, &[0xf2, 0xe9, 0xf6, 0xf2, 0xff])?);
        }
        Ok(())
    });
}

#[test]
fn keys_have_the_codes_that_qemus_have() {
    const KEYS: &str = "a z 0 9 esc ret spc tab backspace minus less up left home pgdn insert delete \
        kp_0 kp_enter kp_divide kp_multiply kp_add kp_comma kp_equals asterisk f1 f11 f12 num_lock \
        caps_lock scroll_lock print sysrq pause meta_l meta_r menu compose henkan muhenkan yen ro \
        katakanahiragana hiragana lang1 lang2 lf stop again props undo front copy open paste find cut \
        help volumeup volumedown audiomute audioplay audiostop audionext audioprev power sleep wake \
        calculator computer mail mediaselect ac_home ac_back ac_forward ac_refresh ac_bookmarks";
    compare("ps2_scan_codes", |machine, log| {
        for mode in [0x03, 0x43] {
            for set in 1..=3 {
                command(machine, 0x60, &[mode])?;
                keyboard(machine, &[0xff, 0xf0, set])?;
                let mut typed = |machine: &mut Qtest, held: &str, name: &str| -> Result<()> {
                    // In set 3 QEMU gives it the code of the slash beside the letters.
                    if set == 3 && name == "kp_divide" {
                        return Ok(());
                    }
                    let codes = [key(machine, name, true)?, key(machine, name, false)?];
                    log.push((
                        format!("mode {mode:02x}, set {set}: {held}{name}"),
                        codes.join(" | "),
                    ));
                    Ok(())
                };
                for name in KEYS.split_whitespace() {
                    typed(machine, "", name)?;
                }
                for held in ["shift", "shift_r", "ctrl", "ctrl_r", "alt", "alt_r"] {
                    key(machine, held, true)?;
                    for name in ["print", "sysrq", "pause", "home", "kp_divide", "a"] {
                        typed(machine, &format!("{held}-"), name)?;
                    }
                    key(machine, held, false)?;
                }
            }
        }
        Ok(())
    });
}

#[test]
fn a_mouse_reports_as_qemus() {
    compare("ps2_mouse_reports", |machine, log| {
        for knocks in [&[][..], &[200, 100, 80], &[200, 100, 80, 200, 200, 80]] {
            mouse(machine, &[0xff])?;
            for &rate in knocks {
                mouse(machine, &[0xf3, rate])?;
            }
            let mut note = |what: String, seen: String| log.push((what, seen));
            let id = mouse(machine, &[0xf2, 0xf4])?;
            note(id.clone(), String::new());
            let wheels = usize::from(id.contains("m03")) * 2 + usize::from(id.contains("m04")) * 6;
            let buttons = ["left", "right", "middle"].iter();
            let more = ["wheel-up", "wheel-down", "side", "extra", "wheel-left", "wheel-right"];
            for &name in buttons.chain(&more[..wheels]) {
                let down = events(machine, json!([button(name, true)]))?;
                note(format!("{id}: {name}"), down);
                // QEMU reports again when a wheel's button goes up.
                let up = events(machine, json!([button(name, false)]))?;
                if !name.starts_with("wheel") {
                    note(format!("{id}: {name} up"), up);
                }
            }
            for value in [1, -1, 100, 127, 128, -128, 300, -300] {
                for axis in ["x", "y"] {
                    let seen = events(machine, json!([movement(axis, value)]))?;
                    note(format!("{id}: {axis} by {value}"), seen);
                }
            }
            let all = json!([movement("x", 5), movement("y", -7), button("left", true)]);
            note(format!("{id}: all"), events(machine, all)?);
            events(machine, json!([button("left", false)]))?;
        }
        Ok(())
    });
}
