//! What the screen shows, compared pixel by pixel with the peer's after the same register and memory
//! writes.

mod modes;

use std::path::Path;

use anyhow::Result;
use modes::{GRAPHICS, Mode, TEXT_40, TEXT_80};
use testkit::bare::{Step, script};
use testkit::screen::Picture;
use testkit::{VmBuilder, binary, peer, skip};

fn rhea() -> std::path::PathBuf {
    binary(env!("CARGO_BIN_EXE_rhea"))
}

/// What `program` shows after a guest did `steps`.
fn picture(program: &Path, steps: &[Step]) -> Result<Picture> {
    let mut vm = VmBuilder::new(program)?.args(["-vga", "std"]).code(&script(steps))?.spawn()?;
    vm.serial.wait_for("S")?;
    vm.screen()
}

/// Runs each list of steps on both programs and compares the pictures.
fn compare(test: &str, cases: Vec<(String, Vec<Step>)>) {
    let Some(peer) = peer() else { return skip(test, "no QEMU to compare with") };
    testkit::run(test, || {
        let mut differences = Vec::new();
        for (name, steps) in cases {
            let (ours, theirs) = (picture(&rhea(), &steps)?, picture(&peer, &steps)?);
            if let Some(difference) = ours.difference(&theirs) {
                differences.push(format!("{name}: {difference}"));
            }
        }
        anyhow::ensure!(differences.is_empty(), "{}", differences.join("\n"));
        Ok(())
    });
}

fn text_case(mode: &Mode, cursor: u16, extra: &[Step]) -> (String, Vec<Step>) {
    let mut steps = mode.set();
    steps.extend(modes::font());
    steps.extend(mode.set());
    steps.extend(modes::noise(0xb_8000, 0x8000));
    steps.push(Step::Out16(0x3d4, cursor & 0xff00 | 0x0e));
    steps.push(Step::Out16(0x3d4, cursor << 8 | 0x0f));
    steps.extend(extra);
    (mode.name.to_owned(), steps)
}

#[test]
fn text_modes_look_like_the_peers() {
    let fonts = [Step::Out16(0x3c4, 0x2903)];
    // Scrolled by two rows and a bit, colours from the other half of the palette, tall cursor.
    let scrolled = [
        Step::Out16(0x3d4, 0x000c),
        Step::Out16(0x3d4, 0xa70d),
        Step::Out16(0x3d4, 0x020a),
        Step::Out16(0x3d4, 0x1f0b),
        Step::In8(0x3da),
        Step::Out8(0x3c0, 0x34),
        Step::Out8(0x3c0, 0x0b),
    ];
    let eight_dots = [Step::Out16(0x3c4, 0x0101), Step::Out16(0x3d4, 0x4709)];
    let no_cursor = [Step::Out16(0x3d4, 0x2d0a)];
    compare(
        "text_modes_look_like_the_peers",
        vec![
            text_case(&TEXT_80, 85, &[]),
            text_case(&TEXT_80, 300, &fonts),
            text_case(&TEXT_80, 300, &scrolled),
            text_case(&TEXT_80, 300, &eight_dots),
            text_case(&TEXT_80, 300, &no_cursor),
            text_case(&TEXT_40, 41, &[]),
        ],
    );
}

#[test]
fn graphics_modes_look_like_the_peers() {
    let case = |mode: &Mode| {
        let mut steps = mode.set();
        steps.extend(modes::noise(0xa_0000, 0x2_0000));
        (mode.name.to_owned(), steps)
    };
    compare("graphics_modes_look_like_the_peers", GRAPHICS.iter().map(case).collect());
}

/// Write modes, rotation, logic functions, set/reset and masks of the planar modes.
#[test]
fn planar_writes_end_where_the_peers_do() {
    let mut steps = GRAPHICS[0].set();
    steps.extend(modes::noise(0xa_0000, 0x1_0000));
    let mut state = 0x9e37_79b9_u32;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    for i in 0..6000_u32 {
        let value = random();
        if i % 8 == 0 {
            let indices = [0_u8, 1, 3, 5, 8, 2, 4, 7];
            let index = indices[(value >> 8) as usize % indices.len()];
            let bits = match index {
                // The shift mode stays.
                5 => (value >> 16) as u8 & 0x0b,
                3 => (value >> 16) as u8 & 0x1f,
                8 => (value >> 16) as u8,
                _ => (value >> 16) as u8 & 0x0f,
            };
            steps.push(Step::Out16(0x3ce, u16::from(bits) << 8 | u16::from(index)));
            steps.push(Step::Out16(0x3c4, (random() as u16 & 0x0f) << 8 | 2));
        }
        let address = 0xa_0000 + random() % 0x9600;
        if value & 3 == 0 {
            steps.push(Step::Load8(address));
        }
        steps.push(Step::Store8(address, random() as u8));
    }
    compare("planar_writes_end_where_the_peers_do", vec![("planar writes".to_owned(), steps)]);
}

/// Where firmware puts the linear frame buffer.
const FRAME_BUFFER: u32 = 0xfd00_0000;

fn vbe(registers: &[(u16, u16)]) -> Vec<Step> {
    let write =
        |&(index, value): &(u16, u16)| [Step::Out16(0x1ce, index), Step::Out16(0x1cf, value)];
    registers.iter().flat_map(write).collect()
}

#[test]
fn vbe_modes_look_like_the_peers() {
    let mut cases = Vec::new();
    for depth in [4, 8, 15, 16, 24, 32] {
        let mut steps = TEXT_80.set();
        steps.extend(vbe(&[(4, 0), (1, 160), (2, 120), (3, depth), (4, 0x41)]));
        steps.extend(modes::noise(FRAME_BUFFER, 160 * 120 * 4));
        steps.extend(modes::palette());
        cases.push((format!("VBE {depth}"), steps.clone()));
        steps.extend(vbe(&[(6, 200), (8, 16), (9, 3)]));
        cases.push((format!("VBE {depth} virtual"), steps));
    }
    let mut banked = TEXT_80.set();
    banked.extend(vbe(&[(4, 0), (1, 320), (2, 240), (3, 32), (4, 0x21)]));
    for bank in 0..3 {
        banked.extend(vbe(&[(5, bank)]));
        banked.extend(modes::noise(0xa_0000 + u32::from(bank) * 0x100, 0x8000));
    }
    cases.push(("VBE banked".to_owned(), banked));
    compare("vbe_modes_look_like_the_peers", cases);
}
