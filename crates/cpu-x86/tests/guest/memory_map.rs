//! Memory that is mapped over RAM, and changes under a running CPU.

use accel::Vcpu;
use iced_x86::code_asm::*;
use memory::{Access, MapId, Mapping, Reads, Visible, Writes};
use std::sync::Mutex;

use super::*;

/// Where blocks are mapped: over RAM.
const WINDOW: u64 = 0xc_0000;
const SMI_PORT: u32 = 0xec;
const MAP_PORT: u32 = 0xee;

fn report(a: &mut CodeAssembler, value: AsmMemoryOperand) {
    a.mov(eax, value).unwrap();
    a.out(0xe9, eax).unwrap();
}

/// Has the guest's writes to the port pick which of `choices` is mapped.
fn on_request(board: &Arc<Board>, choices: Vec<Mapping>) {
    let memory = Arc::clone(&board.memory);
    let mapped: Mutex<Vec<MapId>> = Mutex::default();
    *board.on_map.lock().unwrap() = Some(Box::new(move |choice| {
        let mut mapped = mapped.lock().unwrap();
        let new = choices.get(choice as usize).cloned().into_iter().collect();
        *mapped = memory.remap(&mapped, new).unwrap();
    }));
}

fn request(a: &mut CodeAssembler, choice: u32) {
    a.mov(eax, choice).unwrap();
    a.out(MAP_PORT, al).unwrap();
}

#[test]
fn rom_takes_no_writes_and_flash_hands_them_to_the_bus() {
    let (mut cpu, board) = long_mode();
    let block = board.memory.allocate("rom", 0x1000).unwrap();
    block.write(0, &0x1111u32.to_le_bytes()).unwrap();
    put(&board, WINDOW, 0x2222);
    on_request(
        &board,
        vec![
            Mapping::new(WINDOW, &block, Access::ROM),
            Mapping::new(WINDOW, &block, Access::ROM_DEVICE),
            Mapping::new(WINDOW, &block, Access::RAM),
            Mapping::new(WINDOW, &block, Access { reads: Reads::Block, writes: Writes::Below }),
            Mapping::new(WINDOW, &block, Access { reads: Reads::Below, writes: Writes::Bus }),
            Mapping::new(WINDOW, &block, Access::BUS),
        ],
    );
    code(&board, 64, CODE, |a| {
        report(a, dword_ptr(WINDOW));
        for choice in 0..7 {
            request(a, choice);
            report(a, dword_ptr(WINDOW));
            a.mov(dword_ptr(WINDOW), 0x100 + choice).unwrap();
            a.lock().add(dword_ptr(WINDOW), 0x1000).unwrap();
            report(a, dword_ptr(WINDOW));
        }
        a.hlt().unwrap();
    });
    let bus = WINDOW.wrapping_mul(0x9e37_79b9_7f4a_7c15) as u32;
    let expected = [
        0x2222, // RAM
        0x1111, 0x1111, // ROM
        0x1111, 0x1111, // flash
        0x1111, 0x1102, // RAM in place of RAM
        0x1102, 0x1102, // written below
        // The locked addition read the block and wrote below.
        0x2102, 0x2102, // read below, written to the bus
        bus, bus, // nothing
        0x2102, 0x1106, // RAM again
    ];
    assert_eq!(run_to_halt(&mut cpu, &board), expected);
    let mmio = board.mmio.lock().unwrap().clone();
    let written: Vec<u64> = mmio.iter().map(|(_, _, value)| *value).collect();
    assert!(mmio.iter().all(|&(at, size, _)| (at, size) == (WINDOW, 4)));
    let sum = u64::from(bus.wrapping_add(0x1000));
    assert_eq!(written, [0x101, 0x2111, 0x104, 0x3102, 0x105, sum]);
}

#[test]
fn code_follows_the_map_and_its_block() {
    let (mut cpu, board) = long_mode();
    let blocks: Vec<_> = [5u8, 6, 7]
        .into_iter()
        .map(|value| {
            let block = board.memory.allocate("code", 0x1000).unwrap();
            // mov eax, value; ret
            block.write(0, &[0xb8, value, 0, 0, 0, 0xc3]).unwrap();
            Mapping::new(WINDOW, &block, Access::ROM)
        })
        .collect();
    let patched = blocks[0].block.clone();
    on_request(&board, blocks);
    code(&board, 64, CODE, |a| {
        a.mov(ebx, WINDOW as u32).unwrap();
        for choice in [0, 1, 2, 1, 0] {
            request(a, choice);
            a.call(rbx).unwrap();
            a.out(0xe9, eax).unwrap();
        }
        a.hlt().unwrap();
    });
    assert_eq!(run_to_halt(&mut cpu, &board), [5, 6, 7, 6, 5]);
    patched.write(1, &[9]).unwrap();
    let mut state = cpu.state();
    state.rip = CODE;
    state.activity = cpu_x86::state::Activity::Running;
    cpu.set_state(&state).unwrap();
    assert_eq!(run_to_halt(&mut cpu, &board)[5..], [9, 6, 7, 6, 9]);
}

#[test]
fn some_memory_is_for_system_management_mode_alone() {
    let (mut cpu, board) = long_mode();
    let block = board.memory.allocate("smram", 0x1000).unwrap();
    block.write(0, &0x51u32.to_le_bytes()).unwrap();
    let mapping =
        Mapping { visible: Visible::Smm, priority: 5, ..Mapping::new(WINDOW, &block, Access::RAM) };
    board.memory.map(mapping).unwrap();
    put(&board, WINDOW, 0x52);
    code(&board, 16, 0x3_8000, |a| {
        a.mov(ebx, WINDOW as u32).unwrap();
        report(a, dword_ptr(ebx));
        a.mov(dword_ptr(ebx), 0x53).unwrap();
        // RSM
        a.db(&[0x0f, 0xaa]).unwrap();
    });
    code(&board, 64, CODE, |a| {
        report(a, dword_ptr(WINDOW));
        a.out(SMI_PORT, al).unwrap();
        report(a, dword_ptr(WINDOW));
        a.out(SMI_PORT, al).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(run_to_halt(&mut cpu, &board), [0x52, 0x51, 0x52, 0x53]);
    assert_eq!(get(&board, WINDOW), 0x52);
}

#[test]
fn a_watched_block_hears_of_every_write() {
    let (mut cpu, board) = long_mode();
    let block = board.memory.allocate("vram", 0x4000).unwrap();
    board.memory.map(Mapping::new(WINDOW, &block, Access::RAM)).unwrap();
    code(&board, 64, CODE, |a| {
        for _ in 0..3 {
            a.mov(dword_ptr(WINDOW + 0x1000), eax).unwrap();
            a.mov(dword_ptr(WINDOW + 0x1004), eax).unwrap();
            a.hlt().unwrap();
        }
    });
    for _ in 0..3 {
        let mut state = cpu.state();
        state.activity = cpu_x86::state::Activity::Running;
        cpu.set_state(&state).unwrap();
        run_to_halt(&mut cpu, &board);
        assert_eq!(block.take_dirty(0..0x4000), vec![0x1000..0x2000]);
    }
    // Once more for what may have slipped in, then never.
    assert_eq!(block.take_dirty(0..0x4000).len(), 1);
    assert!(block.take_dirty(0..0x4000).is_empty());
}
