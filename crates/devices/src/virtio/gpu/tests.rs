//! The adapter with a driver of the test's own.

use bus::Device;
use display::Console;

use super::protocol::{Failure, ok, request};
use super::*;
use crate::virtio::VirtioPciOptions;
use crate::virtio::testing::{Machine, PLAIN, Queue, READ, WRITE};

const REQUEST: u64 = 0x1_0000;
const RESPONSE: u64 = 0x2_0000;
const PICTURE: u64 = 0x10_0000;

fn machine(gpu: &Arc<VirtioGpu>) -> Machine {
    let options =
        VirtioPciOptions { id: "gpu0".into(), disable_legacy: true, ..Default::default() };
    Machine::new(Machine::memory(), gpu.clone(), options)
}

fn start(machine: &Machine) -> Queue<'_> {
    machine.negotiate(PLAIN);
    let queue = machine.queue(0, 8);
    machine.driver_ok();
    queue
}

/// Sends request `kind` with `words` after the header; returns the response's kind and the rest.
fn send(queue: &mut Queue<'_>, kind: u32, words: &[u32]) -> (u32, Vec<u8>) {
    let header = [kind, 1, 0x77, 0, 0, 0];
    let bytes: Vec<u8> = header.iter().chain(words).flat_map(|w| w.to_le_bytes()).collect();
    queue.machine.memory.write(REQUEST, &bytes).unwrap();
    queue.submit(&[(REQUEST, bytes.len() as u32, READ), (RESPONSE, 0x1000, WRITE)]);
    queue.kick();
    let len = queue.wait_used().1 as usize;
    let mut response = vec![0; len];
    queue.machine.memory.read(RESPONSE, &mut response).unwrap();
    assert_eq!(response[4..16], [1, 0, 0, 0, 0x77, 0, 0, 0, 0, 0, 0, 0], "the fence");
    (u32::from_le_bytes(response[..4].try_into().unwrap()), response[24..].to_vec())
}

/// Sends a request that has no answer of its own; returns the response's kind.
fn ask(queue: &mut Queue<'_>, kind: u32, words: &[u32]) -> u32 {
    send(queue, kind, words).0
}

/// Resource 1 of 64 by 32 pixels, whose memory begins in the middle of two stretches, on output 0.
fn set_up(queue: &mut Queue<'_>) {
    assert_eq!(ask(queue, request::RESOURCE_CREATE_2D, &[1, 2, 64, 32]), ok::NO_DATA);
    let half = 64 * 32 * 2 + 6;
    let list = [1, 2, PICTURE as u32, 0, half, 0, 0x18_0000, 0, half, 0];
    assert_eq!(ask(queue, request::RESOURCE_ATTACH_BACKING, &list), ok::NO_DATA);
    assert_eq!(ask(queue, request::SET_SCANOUT, &[0, 0, 64, 32, 0, 1]), ok::NO_DATA);
}

#[test]
fn a_picture_goes_from_guest_memory_to_the_screen() {
    let gpu = VirtioGpu::new(GpuOptions::default());
    let machine = machine(&gpu);
    assert_eq!(machine.config(0, 4), 0x1050_1af4);
    let mut queue = start(&machine);
    let console = Console::new(0, "gpu0", 0, gpu.clone());
    let mut view = console.view();
    view.refresh();
    assert_eq!(view.surface().size(), IDLE_SIZE);
    let (kind, info) = send(&mut queue, request::GET_DISPLAY_INFO, &[]);
    assert_eq!((kind, info.len()), (ok::DISPLAY_INFO, 384));
    assert_eq!(info[8..20], [0, 5, 0, 0, 0x20, 3, 0, 0, 1, 0, 0, 0]);
    set_up(&mut queue);
    // The last pixels of line 15 and the first of line 16 are on both sides of the gap.
    let pixel = |x: u32, y: u32| y << 8 | x;
    let bytes: Vec<u8> =
        (0..64 * 32).flat_map(|i| (pixel(i % 64, i / 64) | 0xff00_0000).to_le_bytes()).collect();
    let (first, second) = bytes.split_at(64 * 32 * 2 + 6);
    machine.memory.write(PICTURE, first).unwrap();
    machine.memory.write(0x18_0000, second).unwrap();
    view.refresh();
    assert_eq!(view.surface().size(), Size::new(64, 32));
    assert_eq!(view.surface().row(16)[5], 0, "not copied yet");
    let offset = (2 * 64 + 4) * 4;
    let transfer = [4, 2, 50, 20, offset, 0, 1, 0];
    assert_eq!(ask(&mut queue, request::TRANSFER_TO_HOST_2D, &transfer), ok::NO_DATA);
    assert_eq!(ask(&mut queue, request::RESOURCE_FLUSH, &[4, 2, 50, 20, 1, 0]), ok::NO_DATA);
    assert_eq!(view.refresh().rects, [Rect { x: 4, y: 2, width: 50, height: 20 }]);
    for (x, y) in [(4, 2), (53, 15), (4, 16), (53, 21)] {
        assert_eq!(view.surface().row(y)[x as usize], pixel(x, y));
    }
    assert_eq!(view.surface().row(2)[54], 0);

    let saved = machine.function.save();
    let other = VirtioGpu::new(GpuOptions::default());
    let copy = self::machine(&other);
    copy.function.restore(&saved).unwrap();
    assert_eq!(copy.function.save(), saved);
    let mut shown = Console::new(0, "gpu0", 0, other).view();
    shown.refresh();
    assert_eq!(shown.surface(), view.surface());

    assert_eq!(ask(&mut queue, request::RESOURCE_UNREF, &[1, 0]), ok::NO_DATA);
    view.refresh();
    assert!(view.surface().pixels().iter().all(|&pixel| pixel == 0));
}

#[test]
fn what_is_wrong_is_refused_and_memory_is_bounded() {
    let options = GpuOptions { max_host_memory: 1 << 20, ..GpuOptions::default() };
    let gpu = VirtioGpu::new(options);
    let machine = machine(&gpu);
    let mut queue = start(&machine);
    set_up(&mut queue);
    let cases: &[(u32, &[u32], Failure)] = &[
        (request::RESOURCE_CREATE_2D, &[0, 2, 64, 64], Failure::InvalidResource),
        (request::RESOURCE_CREATE_2D, &[1, 2, 64, 64], Failure::InvalidResource),
        (request::RESOURCE_CREATE_2D, &[2, 9, 64, 64], Failure::InvalidParameter),
        (request::RESOURCE_CREATE_2D, &[2, 2, 0, 64], Failure::InvalidParameter),
        (request::RESOURCE_CREATE_2D, &[2, 2, 512, 512], Failure::OutOfMemory),
        (request::RESOURCE_CREATE_2D, &[2, 2, u32::MAX, u32::MAX], Failure::OutOfMemory),
        (request::RESOURCE_UNREF, &[2, 0], Failure::InvalidResource),
        (request::SET_SCANOUT, &[0, 0, 64, 32, 1, 1], Failure::InvalidScanout),
        (request::SET_SCANOUT, &[0, 0, 65, 32, 0, 1], Failure::InvalidParameter),
        (request::SET_SCANOUT, &[u32::MAX, 0, 64, 32, 0, 1], Failure::InvalidParameter),
        (request::SET_SCANOUT, &[0, 0, 8, 32, 0, 1], Failure::InvalidParameter),
        (request::RESOURCE_FLUSH, &[0, 32, 64, 1, 1, 0], Failure::InvalidParameter),
        (request::TRANSFER_TO_HOST_2D, &[0, 0, 64, 33, 0, 0, 1, 0], Failure::InvalidParameter),
        (request::TRANSFER_TO_HOST_2D, &[0, 0, 64, 32, 0, 0, 7, 0], Failure::InvalidResource),
        (request::RESOURCE_ATTACH_BACKING, &[1, 0], Failure::Unspecified),
        (request::RESOURCE_ATTACH_BACKING, &[1, u32::MAX], Failure::Unspecified),
        (request::RESOURCE_DETACH_BACKING, &[3, 0], Failure::InvalidResource),
        (0x108, &[0, 0], Failure::Unspecified),
        (request::MOVE_CURSOR, &[9, 0, 0, 0, 0, 0, 0, 0], Failure::InvalidScanout),
    ];
    for (kind, words, failure) in cases {
        assert_eq!(ask(&mut queue, *kind, words), *failure as u32, "{kind:#x} {words:?}");
    }
    // An offset behind the memory copies nothing.
    let far = [0, 0, 64, 32, u32::MAX, u32::MAX, 1, 0];
    assert_eq!(ask(&mut queue, request::TRANSFER_TO_HOST_2D, &far), ok::NO_DATA);
    assert_eq!(ask(&mut queue, request::RESOURCE_DETACH_BACKING, &[1, 0]), ok::NO_DATA);
    assert_eq!(ask(&mut queue, request::RESOURCE_UNREF, &[1, 0]), ok::NO_DATA);
    assert_eq!(lock(&gpu.adapter).host_memory, 0);
}

#[test]
fn a_resource_without_memory_is_not_shown() {
    let gpu = VirtioGpu::new(GpuOptions::default());
    let machine = machine(&gpu);
    let mut queue = start(&machine);
    assert_eq!(ask(&mut queue, request::RESOURCE_CREATE_2D, &[1, 2, 64, 32]), ok::NO_DATA);
    for (kind, words) in [
        (request::SET_SCANOUT, &[0, 0, 64, 32, 0, 1][..]),
        (request::RESOURCE_DETACH_BACKING, &[1, 0]),
    ] {
        assert_eq!(ask(&mut queue, kind, words), Failure::Unspecified as u32, "{kind:#x}");
    }
}

#[test]
fn a_viewer_s_wish_reaches_the_driver() {
    let gpu = VirtioGpu::new(GpuOptions { outputs: 2, ..GpuOptions::default() });
    let machine = machine(&gpu);
    let mut queue = start(&machine);
    assert_eq!(gpu.config()[..4], [0; 4]);
    gpu.suggest_size(1, Some(Size::new(1024, 768)));
    assert_eq!(gpu.config()[..12], [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
    let (_, info) = send(&mut queue, request::GET_DISPLAY_INFO, &[]);
    assert_eq!(info[32..44], [0, 4, 0, 0, 0, 3, 0, 0, 1, 0, 0, 0]);
    gpu.write_config(4, &1_u32.to_le_bytes());
    assert_eq!(gpu.config()[0], 0);
    let (kind, edid) = send(&mut queue, request::GET_EDID, &[1, 0]);
    assert_eq!((kind, edid.len()), (ok::EDID, 8 + 1024));
    assert_eq!(edid[8..16], [0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
}

#[test]
fn a_cursor_has_a_shape_and_a_place() {
    let gpu = VirtioGpu::new(GpuOptions::default());
    let machine = machine(&gpu);
    let mut queue = start(&machine);
    assert_eq!(ask(&mut queue, request::RESOURCE_CREATE_2D, &[5, 1, 64, 64]), ok::NO_DATA);
    let update = [0, 10, 20, 0, 5, 3, 99, 0];
    assert_eq!(ask(&mut queue, request::UPDATE_CURSOR, &update), ok::NO_DATA);
    let cursor = gpu.cursor(0).unwrap();
    assert_eq!((cursor.position, cursor.shape.hot), ((10, 20), (3, 63)));
    assert_eq!(ask(&mut queue, request::MOVE_CURSOR, &[0, 7, 8, 0, 0, 0, 0, 0]), ok::NO_DATA);
    assert_eq!(gpu.cursor(0).unwrap().position, (7, 8));
    assert_eq!(ask(&mut queue, request::UPDATE_CURSOR, &[0; 8]), ok::NO_DATA);
    assert_eq!(gpu.cursor(0), None);
}
