//! Message-signalled interrupts on their way from devices: writes to memory, most of them to where the
//! local APICs are (PCI Local Bus 3.0, section 6.8).

use std::sync::Arc;

use bus::{MsiMessage, MsiSink};
use memory::GuestMemory;

/// Takes messages to what is at their addresses.
pub(super) struct Messages {
    pub(super) apics: Arc<dyn MsiSink>,
    pub(super) memory: Arc<GuestMemory>,
}

impl MsiSink for Messages {
    fn send(&self, message: MsiMessage) {
        if self.memory.is_ram(message.address) {
            // A driver that polls has its interrupts written to memory. Past the end of RAM there is
            // nobody.
            let _ = self.memory.write(message.address, &message.data.to_le_bytes());
        } else {
            self.apics.send(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Apics(Mutex<Vec<MsiMessage>>);

    impl MsiSink for Apics {
        fn send(&self, message: MsiMessage) {
            self.0.lock().unwrap().push(message);
        }
    }

    #[test]
    fn a_message_can_go_to_memory() {
        let memory = Arc::new(GuestMemory::new(&[(0, 1 << 20)]).unwrap());
        let apics = Arc::new(Apics::default());
        let messages = Messages { apics: apics.clone(), memory: Arc::clone(&memory) };
        messages.send(MsiMessage { address: 0x1000, data: 0x1234_5678 });
        messages.send(MsiMessage { address: (1 << 20) - 2, data: u32::MAX });
        assert!(apics.0.lock().unwrap().is_empty());
        let interrupt = MsiMessage { address: 0xfee0_0000, data: 0x30 };
        messages.send(interrupt);
        assert_eq!(*apics.0.lock().unwrap(), [interrupt]);
        let mut bytes = [0; 4];
        memory.read(0x1000, &mut bytes).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), 0x1234_5678);
    }
}
