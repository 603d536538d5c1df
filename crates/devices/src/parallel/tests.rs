//! A printer driver's handshake.

use super::*;
use crate::irq::testing::Recorder;

#[derive(Default)]
struct Paper(Mutex<Vec<u8>>);

impl CharBackend for Paper {
    fn write(&self, data: &[u8]) -> usize {
        self.0.lock().unwrap().extend_from_slice(data);
        data.len()
    }
    fn set_receiver(&self, _receiver: Box<dyn chardev::CharReceiver>) {}
    fn accept_input(&self) {}
}

#[test]
fn a_strobe_prints_and_is_acknowledged() {
    let ports = AddressSpace::new();
    let (irq, paper) = (Arc::new(Recorder::default()), Arc::new(Paper::default()));
    let lpt = Parallel::new("lpt1", LPT_PORTS[0], IrqLine::new(irq.clone(), 7), paper.clone());
    lpt.attach(&ports).unwrap();
    let read = |offset: u64| ports.read(0x378 + offset, 1).unwrap();
    let write = |offset: u64, value: u64| ports.write(0x378 + offset, 1, value);
    assert_eq!([0, 1, 2, 3, 7].map(read), [0xff, 0xd9, 0xcc, 0xff, 0xff]);
    write(0, 0x41);
    write(2, 0x0d);
    assert_eq!([0, 1, 1, 2].map(read), [0x41, 0x59, 0x59, 0xcd]);
    write(2, 0x0c);
    assert_eq!([1, 1, 1, 1].map(read), [0x59, 0x19, 0xd9, 0xd9]);
    assert!(!irq.level(7));
    write(0, 0x42);
    write(2, 0x1c);
    write(2, 0x1d);
    write(2, 0x1c);
    assert!(irq.level(7));
    read(1);
    assert!(!irq.level(7));
    write(2, 0x09);
    assert_eq!(*paper.0.lock().unwrap(), b"AB", "not initialised");
    write(2, 0x2c);
    assert_eq!([0, 1, 2].map(read), [0xff, 0xd8, 0xec]);
}
