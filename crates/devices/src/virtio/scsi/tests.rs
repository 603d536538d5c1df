//! The adapter as its driver sees it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use block::{Drive, DriveEvent, DriveOptions};
use bus::Device;
use proptest::prelude::*;

use super::request::Response;
use super::*;
use crate::scsi::{LunOptions, Transport, op};
use crate::testing::Failing;
use crate::virtio::VirtioPciOptions;
use crate::virtio::testing::{Machine, PLAIN, Queue, RAM, READ, WRITE, conformance};

const DISK: u64 = 1 << 20;
const HEADER_AT: u64 = 0x1_0000;
const RESPONSE_AT: u64 = 0x1_1000;
const DATA_AT: u64 = 0x2_0000;

struct Bench {
    machine: Machine,
    adapter: Arc<VirtioScsi>,
    dir: tempfile::TempDir,
}

/// What came of a command.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    response: u8,
    status: u8,
    sense: Option<(u8, u8)>,
    residual: u32,
    written: u32,
}

fn options() -> VirtioPciOptions {
    VirtioPciOptions { id: "scsi0".into(), ..VirtioPciOptions::default() }
}

/// An adapter with a disk at 0:0 and a CD-ROM drive at 3:1.
fn bench_with(scsi: ScsiOptions, drive: Arc<Drive>) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let adapter = VirtioScsi::new(scsi).unwrap();
    let disk = Lun::new(drive, "disk", LunOptions::disk()).unwrap();
    adapter.attach(Address { channel: 0, target: 0, lun: 0 }, "disk", disk);
    let path = dir.path().join("cd");
    std::fs::write(&path, vec![3; 40 * 2048]).unwrap();
    let read_only = DriveOptions { read_only: true, ..DriveOptions::default() };
    let cd = Arc::new(Drive::open("cd", &path, &read_only).unwrap());
    let cd = Lun::new(cd, "cd", LunOptions::cdrom(Transport::Scsi)).unwrap();
    adapter.attach(Address { channel: 0, target: 3, lun: 1 }, "cd", cd);
    let machine = Machine::fresh(Machine::memory(), adapter.clone(), options());
    Bench { machine, adapter, dir }
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let content: Vec<u8> = (0..DISK).map(|i| (i >> 9) as u8).collect();
    std::fs::write(&path, content).unwrap();
    let drive = Arc::new(Drive::open("disk", &path, &DriveOptions::default()).unwrap());
    let mut bench = bench_with(ScsiOptions::default(), drive);
    bench.dir = dir;
    bench.machine.map_bars();
    bench
}

/// The queues of control, events and commands.
fn start(machine: &Machine) -> [Queue<'_>; 3] {
    machine.negotiate(PLAIN);
    let queues = [0, 1, 2].map(|index| machine.queue(index, 64));
    machine.driver_ok();
    queues
}

fn write_header(machine: &Machine, target: u8, lun: u8, tag: u64, attribute: u8, cdb: &[u8]) {
    let mut header = vec![1, target, 0, lun, 0, 0, 0, 0];
    header.extend(tag.to_le_bytes());
    header.extend([attribute, 0, 0]);
    header.extend(cdb);
    header.resize(51, 0);
    machine.memory.write(HEADER_AT, &header).unwrap();
}

fn answer(machine: &Machine, written: u32) -> Answer {
    let mut r = [0; 108];
    machine.memory.read(RESPONSE_AT, &mut r).unwrap();
    let word = |at: usize| u32::from_le_bytes(r[at..at + 4].try_into().unwrap());
    let sense = (word(0) > 0).then_some((r[12 + 2], r[12 + 12]));
    Answer { response: r[11], status: r[10], sense, residual: word(4), written }
}

/// Makes one request of a command with `data` and waits for it.
fn run(
    queue: &mut Queue<'_>,
    (target, lun): (u8, u8),
    cdb: &[u8],
    data: &[(u64, u32, bool)],
) -> Answer {
    let machine = queue.machine;
    write_header(machine, target, lun, 7, 0, cdb);
    let mut pieces = vec![(HEADER_AT, 51, READ)];
    pieces.extend(data.iter().filter(|piece| !piece.2));
    pieces.push((RESPONSE_AT, 108, WRITE));
    pieces.extend(data.iter().filter(|piece| piece.2));
    let head = queue.submit(&pieces);
    queue.kick();
    let (done, written) = queue.wait_used();
    assert_eq!(done, head);
    answer(machine, written)
}

fn good(residual: u32, written: u32) -> Answer {
    Answer { response: 0, status: 0, sense: None, residual, written }
}

fn manage(queue: &mut Queue<'_>, function: u32, (target, lun): (u8, u8), tag: u64) -> u8 {
    let machine = queue.machine;
    let mut request = vec![0, 0, 0, 0];
    request.extend(function.to_le_bytes());
    request.extend([1, target, 0, lun, 0, 0, 0, 0]);
    request.extend(tag.to_le_bytes());
    machine.memory.write(0x3_0000, &request).unwrap();
    queue.submit(&[(0x3_0000, 24, READ), (0x3_1000, 1, WRITE)]);
    queue.kick();
    assert_eq!(queue.wait_used().1, 1);
    let mut response = [0xff];
    machine.memory.read(0x3_1000, &mut response).unwrap();
    response[0]
}

#[test]
fn shows_itself_as_an_adapter() {
    let bench = bench();
    let machine = &bench.machine;
    assert_eq!(machine.config(0, 4), 0x1004_1af4);
    assert_eq!(machine.config(8, 4), 0x0100_0000);
    assert_eq!(machine.config(0x2c, 4), 0x0008_1af4);
    let words = [0, 4, 8, 12, 16, 20, 24].map(|at| machine.read(0x2000 + at, 4));
    assert_eq!(words, [1, 254, 0xffff, 128, 16, 96, 32]);
    assert_eq!(machine.read(0x2000 + 28, 2), 0);
    assert_eq!(machine.read(0x2000 + 30, 2), 255);
    assert_eq!(machine.read(0x2000 + 32, 4), 16383);
    machine.write(0x2000 + 20, 4, 0x1_0000);
    assert_eq!(machine.read(0x2000 + 20, 4), 96);
}

#[test]
fn commands_reach_their_units() {
    let bench = bench();
    let [_, _, mut queue] = start(&bench.machine);
    let disk = (0, 0);
    let ready = run(&mut queue, disk, &[op::TEST_UNIT_READY], &[]);
    assert_eq!((ready.status, ready.sense), (2, Some((6, 0x29))));
    assert_eq!(run(&mut queue, disk, &[op::TEST_UNIT_READY], &[]), good(0, 12));
    let read = [op::READ_10, 0, 0, 0, 0, 5, 0, 0, 2, 0];
    let data = [(DATA_AT, 512, WRITE), (DATA_AT + 0x1000, 600, WRITE)];
    assert_eq!(run(&mut queue, disk, &read, &data), good(88, 108 + 1024));
    let mut got = [0; 512];
    bench.machine.memory.read(DATA_AT + 0x1000, &mut got).unwrap();
    assert_eq!(got, [6; 512]);
    assert_eq!(run(&mut queue, disk, &read, &data[..1]).response, Response::Overrun as u8);
    bench.machine.memory.write(DATA_AT, &[0xaa; 512]).unwrap();
    let write = [op::WRITE_10, 0, 0, 0, 0, 9, 0, 0, 1, 0];
    assert_eq!(run(&mut queue, disk, &write, &[(DATA_AT, 512, READ)]), good(0, 12));
    let image = std::fs::read(bench.dir.path().join("disk")).unwrap();
    assert_eq!(image[9 * 512..10 * 512], [0xaa; 512]);
    let both = [(DATA_AT, 512, READ), (DATA_AT, 512, WRITE)];
    assert_eq!(run(&mut queue, disk, &read, &both).response, Response::Failure as u8);
    assert_eq!(run(&mut queue, (9, 0), &read, &data).response, Response::BadTarget as u8);
    assert_eq!(run(&mut queue, (3, 0), &read, &data).sense, Some((5, 0x25)));
    let inquiry = [op::INQUIRY, 0, 0, 0, 36, 0];
    assert_eq!(run(&mut queue, (3, 0), &inquiry, &[(DATA_AT, 36, WRITE)]), good(0, 108 + 36));
    let report = [op::REPORT_LUNS, 0, 0, 0, 0, 0, 0, 0, 4, 0];
    assert_eq!(run(&mut queue, (3, 1), &report, &data), good(512 + 600 - 24, 108 + 24));
    let capacity = [op::READ_CAPACITY_10];
    assert_eq!(run(&mut queue, (3, 1), &capacity, &[(DATA_AT, 8, WRITE)]).sense, Some((6, 0x29)));
    assert_eq!(run(&mut queue, (3, 1), &capacity, &[(DATA_AT, 8, WRITE)]), good(0, 116));
    assert_eq!(bench.machine.function.core().failure(), None);
}

#[test]
fn task_management_answers() {
    let bench = bench();
    let [mut control, _, mut queue] = start(&bench.machine);
    run(&mut queue, (0, 0), &[op::TEST_UNIT_READY], &[]);
    for (function, at, response) in [
        (0, (0, 0), Response::Ok),
        (1, (0, 0), Response::Ok),
        (4, (3, 0), Response::Ok),
        (5, (0, 0), Response::Ok),
        (5, (3, 0), Response::IncorrectLun),
        (5, (4, 0), Response::BadTarget),
        (6, (0, 0), Response::Ok),
        (9, (0, 0), Response::Rejected),
    ] {
        assert_eq!(manage(&mut control, function, at, 7), response as u8, "{function} {at:?}");
    }
    let ready = run(&mut queue, (0, 0), &[op::TEST_UNIT_READY], &[]);
    assert_eq!(ready.sense, Some((6, 0x29)), "the unit was reset");
    bench.machine.memory.write(0x3_0000, &[1, 0, 0, 0, 1, 0, 0, 0]).unwrap();
    control.submit(&[(0x3_0000, 16, READ), (0x3_1000, 5, WRITE)]);
    control.kick();
    assert_eq!(control.wait_used().1, 5);
}

#[test]
fn events_are_told_or_missed() {
    let bench = bench();
    let [_, mut events, mut queue] = start(&bench.machine);
    let read_event = || {
        let mut event = [0; 16];
        bench.machine.memory.read(DATA_AT, &mut event).unwrap();
        event
    };
    let place = Address { channel: 0, target: 3, lun: 1 };
    // There is no buffer yet.
    let cd = bench.adapter.detach(place).unwrap();
    assert_eq!(run(&mut queue, (3, 1), &[0], &[]).response, Response::BadTarget as u8);
    bench.machine.wait("the event is missed", || lock(&bench.adapter.events).missed);
    events.submit(&[(DATA_AT, 16, WRITE)]);
    events.kick();
    assert_eq!(events.wait_used().1, 16);
    assert_eq!(read_event()[..4], [0, 0, 0, 0x80]);
    events.submit(&[(DATA_AT, 16, WRITE)]);
    events.kick();
    bench.adapter.attach(place, "cd", cd);
    events.wait_used();
    assert_eq!(read_event(), [1, 0, 0, 0, 1, 3, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0]);
    run(&mut queue, (0, 0), &[0], &[]);
    let changed = run(&mut queue, (0, 0), &[0], &[]);
    assert_eq!(changed.sense, Some((6, 0x3f)));
    events.submit(&[(DATA_AT, 16, WRITE)]);
    events.kick();
    let disk = bench.adapter.bus().lun(Address { channel: 0, target: 0, lun: 0 }).unwrap();
    disk.drive().resize(2 * DISK).unwrap();
    events.wait_used();
    assert_eq!(read_event(), [3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x2a, 9, 0, 0]);
}

/// A machine whose disk is full, and the write that found that out.
fn full_disk() -> (Bench, Arc<Failing>) {
    let node = Failing::new(DISK);
    let drive = Arc::new(Drive::with_node("disk", node.clone(), &DriveOptions::default()));
    let events = Arc::new(Mutex::new(0));
    let seen = events.clone();
    drive.set_event_hook(Box::new(move |event| {
        assert!(matches!(event, DriveEvent::Error(_)));
        *seen.lock().unwrap() += 1;
    }));
    let bench = bench_with(ScsiOptions::default(), drive);
    bench.machine.map_bars();
    {
        let [_, _, mut queue] = start(&bench.machine);
        run(&mut queue, (0, 0), &[op::TEST_UNIT_READY], &[]);
        node.fails_writes.store(true, Ordering::SeqCst);
        write_header(&bench.machine, 0, 0, 9, 0, &[op::WRITE_10, 0, 0, 0, 0, 9, 0, 0, 1, 0]);
        queue.submit(&[(HEADER_AT, 51, READ), (DATA_AT, 512, READ), (RESPONSE_AT, 108, WRITE)]);
        queue.kick();
        bench.machine.wait("the event", || *events.lock().unwrap() > 0);
        bench.machine.wait("it is held", || !bench.adapter.backlog.held().is_empty());
        assert_eq!(queue.used_index(), 1);
    }
    (bench, node)
}

#[test]
fn a_write_that_found_no_space_is_made_again() {
    let (bench, node) = full_disk();
    let machine = &bench.machine;
    machine.function.core().pause();
    let saved = machine.function.save();
    machine.function.reset();
    machine.function.restore(&saved).unwrap();
    assert_eq!(machine.function.save(), saved);
    node.fails_writes.store(false, Ordering::SeqCst);
    machine.function.core().resume();
    let used = 0x20_0000 + 0x2_0000 + 0xc000 + 2;
    machine.wait("the write", || {
        let mut index = [0; 2];
        machine.memory.read(used, &mut index).unwrap();
        index[0] == 2
    });
    assert_eq!(answer(machine, 12), good(0, 12));
}

#[test]
fn commands_held_back_are_aborted() {
    let (bench, _node) = full_disk();
    // The machine does not stop here, so that the driver can act.
    let base = 0x20_0000;
    let mut control = Queue::new(&bench.machine, 0, 64, base, base + 0x8000, base + 0xc000);
    assert_eq!(manage(&mut control, 6, (0, 0), 8), Response::Ok as u8);
    assert_eq!(manage(&mut control, 6, (0, 0), 9), Response::Succeeded as u8);
    assert_eq!(manage(&mut control, 0, (0, 0), 9), Response::Ok as u8);
    assert_eq!(answer(&bench.machine, 12).response, Response::Aborted as u8);
    assert_eq!(manage(&mut control, 6, (0, 0), 9), Response::Ok as u8);
}

#[test]
fn ordered_commands_go_through() {
    let bench = bench();
    let [_, _, mut queue] = start(&bench.machine);
    for attribute in [0, 1, 2, 4, 1] {
        let header = HEADER_AT + 0x100 * u64::from(queue.next_avail);
        write_header(&bench.machine, 0, 0, 1, attribute, &[op::INQUIRY, 0, 0, 0, 36, 0]);
        let mut bytes = [0; 51];
        bench.machine.memory.read(HEADER_AT, &mut bytes).unwrap();
        bench.machine.memory.write(header, &bytes).unwrap();
        queue.submit(&[(header, 51, READ), (RESPONSE_AT, 108, WRITE), (DATA_AT, 36, WRITE)]);
    }
    queue.kick();
    for _ in 0..5 {
        assert_eq!(queue.wait_used().1, 144);
    }
}

#[test]
fn options_out_of_range_are_refused() {
    let error = |options: ScsiOptions| VirtioScsi::new(options).err().unwrap().to_string();
    let defaults = ScsiOptions::default;
    assert!(error(ScsiOptions { num_queues: 0, ..defaults() }).contains("number of queues"));
    assert!(error(ScsiOptions { num_queues: 63, ..defaults() }).contains("less than 63"));
    assert!(error(ScsiOptions { queue_size: 2, ..defaults() }).contains("must be > 2"));
    assert!(error(ScsiOptions { queue_size: 100, ..defaults() }).contains("power of 2"));
}

#[test]
fn keeps_the_promises_of_every_device() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, [0; 4096]).unwrap();
    let drive = Arc::new(Drive::open("disk", &path, &DriveOptions::default()).unwrap());
    let bench = bench_with(ScsiOptions::default(), drive);
    conformance(&bench.machine, || {
        bench.machine.enable_msix(2);
        let [_, _, mut queue] = start(&bench.machine);
        bench.machine.write(0x2000 + 20, 4, 40);
        bench.machine.write(0x2000 + 20, 4, 96);
        run(&mut queue, (0, 0), &[op::TEST_UNIT_READY], &[]);
        run(&mut queue, (3, 1), &[op::TEST_UNIT_READY], &[]);
        run(&mut queue, (3, 1), &[op::START_STOP_UNIT, 0, 0, 0, 2], &[]);
    });
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..RAM,
        3 => Just(HEADER_AT),
        1 => RAM - 64..RAM + 64,
        1 => any::<u64>(),
    ]
}

fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let len = prop_oneof![
        3 => 0..64_u32, 3 => Just(51), 3 => Just(108), 2 => Just(24), 1 => Just(16), 1 => any::<u32>(),
        1 => 0..0x10000_u32,
    ];
    let flags = prop_oneof![4 => 0..8_u16, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0..16_u16, 1 => any::<u16>()];
    (address(), len, flags, next)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is in the rings and requests, the adapter neither panics nor hangs, and works after a
    /// reset.
    #[test]
    fn hostile_rings_do_no_harm(
        queue in 0..3_u16,
        descs in prop::collection::vec(descriptor(), 16),
        heads in prop::collection::vec(0..18_u16, 1..8),
        bytes in prop::collection::vec(any::<u8>(), 60),
        tame in any::<bool>(),
        sizes in (any::<u16>(), any::<u8>()),
    ) {
        let bench = bench();
        let machine = &bench.machine;
        {
            let mut queues = start(machine);
            let mut bytes = bytes;
            if tame {
                let len = if queue == 0 { 8 } else { 0 };
                bytes[..4].copy_from_slice(&[0, 0, 0, 0]);
                bytes[len..len + 4].copy_from_slice(&[1, 0, 0, 0]);
            }
            machine.memory.write(HEADER_AT, &bytes).unwrap();
            machine.write(0x2000 + 20, 4, sizes.0.into());
            machine.write(0x2000 + 24, 4, sizes.1.into());
            let queue = &mut queues[usize::from(queue)];
            for (index, &(addr, len, flags, next)) in (0..).zip(&descs) {
                queue.set_desc(index, addr, len, flags, next);
            }
            for &head in &heads {
                queue.offer(head);
            }
            queue.kick();
        }
        machine.function.core().pause();
        let saved = machine.function.save();
        machine.function.restore(&saved).unwrap();
        machine.function.core().resume();
        let [_, _, mut queue] = start(machine);
        run(&mut queue, (0, 0), &[op::TEST_UNIT_READY], &[]);
        let read = [op::READ_10, 0, 0, 0, 0, 5, 0, 0, 1, 0];
        let answer = run(&mut queue, (0, 0), &read, &[(DATA_AT, 512, WRITE)]);
        prop_assert_eq!(answer, good(0, 108 + 512));
    }
}
