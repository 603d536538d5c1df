//! Keyboards and pointers on virtio.

use devices::virtio::input::{InputKind, VirtioInput};
use options::Properties;

use super::Driver;
use super::usb::take_console;
use super::virtio::{Generation, VirtioTransport};
use crate::BuildError;
use crate::pc::board::Pc;

/// MSI-X vectors unless told otherwise: one for the configuration, one for both queues.
const VECTORS: u16 = 2;

/// The kinds of this topic.
pub(super) const DRIVERS: &[Driver] = &[
    Driver {
        name: "virtio-keyboard-pci",
        aliases: &["virtio-keyboard"],
        bus: "PCI",
        description: "keyboard",
        make: |pc, path, properties| make(pc, path, properties, InputKind::Keyboard),
    },
    Driver {
        name: "virtio-mouse-pci",
        aliases: &["virtio-mouse"],
        bus: "PCI",
        description: "mouse",
        make: |pc, path, properties| make(pc, path, properties, InputKind::Mouse),
    },
    Driver {
        name: "virtio-tablet-pci",
        aliases: &["virtio-tablet"],
        bus: "PCI",
        description: "pointer that tells of positions",
        make: |pc, path, properties| make(pc, path, properties, InputKind::Tablet),
    },
];

fn make(
    pc: &mut Pc,
    path: &str,
    mut properties: Properties,
    kind: InputKind,
) -> Result<(), BuildError> {
    let mut transport = VirtioTransport::take(pc, path, &mut properties, Generation::OnlyModern)?;
    transport.default_vectors(VECTORS);
    let console = take_console(&mut properties)?;
    let serial = properties.take("serial");
    let wheel = match kind {
        InputKind::Keyboard => false,
        InputKind::Mouse | InputKind::Tablet => properties.take_bool("wheel-axis")?.unwrap_or(true),
    };
    properties.finish()?;
    let device = VirtioInput::new(kind, serial, wheel, console, &pc.input);
    pc.add_virtio(path, device, transport)?;
    Ok(())
}
