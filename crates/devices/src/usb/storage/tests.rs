//! A disk as a host sees it that sends it wrappers itself.

use block::{Drive, DriveOptions};

use super::super::tests::{control_read, control_write, packet, set_up};
use super::super::{Peripheral, Token};
use super::*;
use crate::scsi::{LunOptions, key, op};

const ADDRESS: u8 = 5;
const BLOCK: usize = 512;
const BLOCKS: usize = 1024;

struct Bench {
    device: Arc<Peripheral>,
    path: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

fn content(at: usize) -> u8 {
    ((at >> 9) * 7 + at % 251) as u8
}

fn bench(worker: Worker) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, (0..BLOCKS * BLOCK).map(content).collect::<Vec<_>>()).unwrap();
    let drive = Arc::new(Drive::open("drive0", &path, &DriveOptions::default()).unwrap());
    let options = LunOptions { keeps_sense: true, ..LunOptions::disk() };
    let lun = Lun::new(drive, "unit", options).unwrap();
    let device = Peripheral::new("usb0", UsbStorage::new(lun, "7".into(), worker).unwrap());
    set_up(&device, ADDRESS);
    let bench = Bench { device, path, _dir: dir };
    assert_eq!(bench.run(&[op::TEST_UNIT_READY], 0, None), (Vec::new(), 0, 1), "it was reset");
    assert_eq!(bench.sense()[2], key::UNIT_ATTENTION);
    bench
}

fn wrapper(block: &[u8], expected: u32, to_host: bool) -> [u8; COMMAND_LEN] {
    let mut wrapper = [0; COMMAND_LEN];
    wrapper[..4].copy_from_slice(&COMMAND_SIGNATURE);
    wrapper[4..8].copy_from_slice(&[1, 2, 3, 4]);
    wrapper[8..12].copy_from_slice(&expected.to_le_bytes());
    wrapper[12] = u8::from(to_host) << 7;
    wrapper[14] = block.len() as u8;
    wrapper[15..15 + block.len()].copy_from_slice(block);
    wrapper
}

impl Bench {
    /// One packet, tried again as long as the device says "not now".
    fn packet(&self, endpoint: u8, token: Token, data: &mut [u8]) -> Handshake {
        loop {
            match packet(&self.device, ADDRESS, endpoint, token, data).unwrap() {
                Handshake::Nak => std::thread::yield_now(),
                other => return other,
            }
        }
    }

    /// A command that moves `expected` bytes to the host, or `out` from it; what came, the residue and the
    /// status.
    fn run(&self, block: &[u8], expected: u32, out: Option<&[u8]>) -> (Vec<u8>, u32, u8) {
        let expected = out.map_or(expected, |out| out.len() as u32);
        let mut wrapper = wrapper(block, expected, out.is_none());
        assert_eq!(self.packet(OUT, Token::Out, &mut wrapper), Handshake::Ack(COMMAND_LEN));
        for chunk in out.unwrap_or_default().chunks(MAX_PACKET) {
            let len = chunk.len();
            let sent = self.packet(OUT, Token::Out, &mut chunk.to_vec());
            assert_eq!(sent, Handshake::Ack(len));
        }
        let mut data = Vec::new();
        while out.is_none() && data.len() < expected as usize {
            let mut room = [0; MAX_PACKET];
            let Handshake::Ack(len) = self.packet(IN, Token::In, &mut room) else { panic!() };
            data.extend(&room[..len]);
        }
        let mut status = [0; STATUS_LEN];
        assert_eq!(self.packet(IN, Token::In, &mut status), Handshake::Ack(STATUS_LEN));
        assert_eq!(status[..8], *b"USBS\x01\x02\x03\x04");
        let residue = u32::from_le_bytes(status[8..12].try_into().unwrap());
        (data, residue, status[12])
    }

    fn sense(&self) -> Vec<u8> {
        self.run(&[op::REQUEST_SENSE, 0, 0, 0, 18, 0], 18, None).0
    }
}

fn read(lba: u8, count: u16) -> [u8; 10] {
    let [high, low] = count.to_be_bytes();
    [0x28, 0, 0, 0, 0, lba, 0, high, low, 0]
}

fn write(lba: u8, count: u16) -> [u8; 10] {
    let mut block = read(lba, count);
    block[0] = 0x2a;
    block
}

fn moves_data(worker: Worker) {
    let bench = bench(worker);
    let (inquiry, residue, status) = bench.run(&[op::INQUIRY, 0, 0, 0, 36, 0], 36, None);
    assert_eq!((inquiry.len(), residue, status), (36, 0, 0));
    assert_eq!(&inquiry[8..29], b"QEMU    QEMU HARDDISK");
    // More than a piece, and less.
    for (lba, count) in [(0, 1), (3, 300), (0, 1000)] {
        let len = usize::from(count) * BLOCK;
        let (data, residue, status) = bench.run(&read(lba, count), len as u32, None);
        let start = usize::from(lba) * BLOCK;
        assert!(data.iter().enumerate().all(|(i, &byte)| byte == content(start + i)));
        assert_eq!((data.len(), residue, status), (len, 0, 0));
    }
    let news: Vec<u8> = (0..300 * BLOCK).map(|i| (i % 253) as u8).collect();
    assert_eq!(bench.run(&write(2, 300), 0, Some(&news)), (Vec::new(), 0, 0));
    assert_eq!(bench.run(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0, None).2, 0);
    let image = std::fs::read(&bench.path).unwrap();
    assert!(image[2 * BLOCK..302 * BLOCK] == news);
    assert_eq!(image[302 * BLOCK], content(302 * BLOCK));
}

#[test]
fn data_are_moved_by_a_worker() {
    moves_data(Worker::Thread);
}

#[test]
fn data_are_moved_at_once() {
    moves_data(Worker::None);
}

#[test]
fn host_and_device_may_disagree_on_the_data() {
    let bench = bench(Worker::None);
    // The host expects more than the device has, or less of a reply.
    let (data, residue, status) = bench.run(&[op::INQUIRY, 0, 0, 0, 36, 0], 100, None);
    assert_eq!((residue, status), (64, 0));
    assert_eq!(data[36..], [0; 64]);
    assert_eq!(bench.run(&[op::INQUIRY, 0, 0, 0, 36, 0], 5, None).1, 0);
    let (data, residue, status) = bench.run(&read(0, 1), 700, None);
    assert!(data[..BLOCK].iter().enumerate().all(|(i, &byte)| byte == content(i)));
    assert_eq!((data.len(), residue, status), (700, 700 - BLOCK as u32, 0));
    let sector = [0x5a; BLOCK + 3];
    assert_eq!(bench.run(&write(0, 1), 0, Some(&sector)), (Vec::new(), 3, 0));
    assert_eq!(std::fs::read(&bench.path).unwrap()[BLOCK], content(BLOCK));
    // Less than a medium's data, none, or the other way.
    assert_eq!(bench.run(&read(0, 2), BLOCK as u32, None).2, 2);
    assert_eq!(bench.run(&read(0, 2), 0, None).2, 2);
    assert_eq!(bench.run(&write(0, 2), 0, None).2, 2);
    assert_eq!(bench.run(&write(1, 2), 0, Some(&[0; BLOCK])), (Vec::new(), BLOCK as u32, 2));
    assert_eq!(bench.run(&read(0, 1), 0, Some(&[0; BLOCK])).2, 2);
    assert_eq!(std::fs::read(&bench.path).unwrap()[BLOCK], content(BLOCK));
    // A command that moves none.
    assert_eq!(bench.run(&[op::TEST_UNIT_READY, 0, 0, 0, 0, 0], 9, None), (vec![0; 9], 9, 0));
}

#[test]
fn failures_are_told_by_request_sense() {
    let bench = bench(Worker::None);
    let (data, residue, status) = bench.run(&read(0, 2000), 2000 * BLOCK as u32, None);
    assert_eq!((data.len(), residue, status), (2000 * BLOCK, 2000 * BLOCK as u32, 1));
    let sense = bench.sense();
    assert_eq!((sense[2], sense[12]), (key::ILLEGAL_REQUEST, 0x21));
    assert_eq!(bench.sense()[2], key::NO_SENSE);
    assert_eq!(bench.run(&[0xff], 0, None).2, 1);
    assert_eq!(bench.sense()[12], 0x20);
    assert_eq!(bench.run(&write(0, 2000), 0, Some(&[1; 128])), (Vec::new(), 128, 1));
    assert_eq!(std::fs::read(&bench.path).unwrap()[0], content(0));
}

#[test]
fn nonsense_breaks_the_transport_until_it_is_reset() {
    let bench = bench(Worker::None);
    let good = wrapper(&[op::TEST_UNIT_READY], 0, true);
    let mut wrong = [good; 4];
    wrong[0][0] = b'X';
    wrong[1][13] = 1;
    wrong[2][14] = 0;
    wrong[3][14] = 17;
    for mut wrapper in wrong {
        assert_eq!(bench.packet(OUT, Token::Out, &mut wrapper), Handshake::Stall);
        assert_eq!(bench.packet(OUT, Token::Out, &mut good.clone()), Handshake::Stall);
        assert_eq!(bench.packet(IN, Token::In, &mut [0; 64]), Handshake::Stall);
        assert!(control_write(&bench.device, ADDRESS, [0x21, 0xff, 0, 0, 0, 0, 0, 0], &[]));
        assert_eq!(bench.run(&[op::TEST_UNIT_READY], 0, None).2, 0);
    }
    assert_eq!(bench.packet(OUT, Token::Out, &mut good[..30].to_vec()), Handshake::Stall);
    bench.device.bus_reset();
    set_up(&bench.device, ADDRESS);
    let luns = control_read(&bench.device, ADDRESS, [0xa1, 0xfe, 0, 0, 0, 0, 1, 0]);
    assert_eq!(luns, Some(vec![0]));
    // A reset ends a command, too.
    let mut command = wrapper(&read(0, 9), 9 * BLOCK as u32, true);
    assert_eq!(bench.packet(OUT, Token::Out, &mut command), Handshake::Ack(COMMAND_LEN));
    assert_eq!(bench.packet(IN, Token::In, &mut [0; 64]), Handshake::Ack(64));
    assert!(control_write(&bench.device, ADDRESS, [0x21, 0xff, 0, 0, 0, 0, 0, 0], &[]));
    assert_eq!(bench.run(&[op::TEST_UNIT_READY], 0, None).2, 0);
}

#[test]
fn a_command_goes_on_after_a_restore() {
    let bench = bench(Worker::None);
    let mut command = wrapper(&read(0, 300), 300 * BLOCK as u32, true);
    bench.packet(OUT, Token::Out, &mut command);
    let mut room = [0; 64];
    for _ in 0..10 {
        bench.packet(IN, Token::In, &mut room);
    }
    let saved = bus::Device::save(&*bench.device);
    bus::Device::reset(&*bench.device);
    bus::Device::restore(&*bench.device, &saved).unwrap();
    for at in (640..300 * BLOCK).step_by(64) {
        assert_eq!(bench.packet(IN, Token::In, &mut room), Handshake::Ack(64));
        assert_eq!(room[0], content(at));
    }
    assert_eq!(bench.packet(IN, Token::In, &mut room), Handshake::Ack(STATUS_LEN));
    assert_eq!(room[8..13], [0; 5]);
}
