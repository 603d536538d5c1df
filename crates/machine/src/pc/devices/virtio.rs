//! Virtio devices on PCI.

use std::sync::Arc;

use devices::pci::Devfn;
use devices::virtio::balloon::VirtioBalloon;
use devices::virtio::rng::{RngLimit, VirtioRng};
use devices::virtio::{VirtioDevice, VirtioPci, VirtioPciOptions};
use options::Properties;

use super::{Driver, ON_OFF_AUTO, PciPlace};
use crate::BuildError;
use crate::pc::board::Pc;

/// The kinds of this topic.
pub(super) const DRIVERS: &[Driver] = &[
    Driver {
        name: "virtio-balloon-pci",
        aliases: &["virtio-balloon"],
        bus: "PCI",
        description: "memory balloon",
        make: |pc, id, properties| virtio_balloon(pc, id, properties, Generation::Either),
    },
    Driver {
        name: "virtio-balloon-pci-non-transitional",
        aliases: &[],
        bus: "PCI",
        description: "memory balloon for version 1 drivers only",
        make: |pc, id, properties| virtio_balloon(pc, id, properties, Generation::Modern),
    },
    Driver {
        name: "virtio-balloon-pci-transitional",
        aliases: &[],
        bus: "PCI",
        description: "memory balloon for old and new drivers",
        make: |pc, id, properties| virtio_balloon(pc, id, properties, Generation::Transitional),
    },
    Driver {
        name: "virtio-rng-pci",
        aliases: &["virtio-rng"],
        bus: "PCI",
        description: "source of randomness",
        make: |pc, id, properties| virtio_rng(pc, id, properties, Generation::Either),
    },
    Driver {
        name: "virtio-rng-pci-non-transitional",
        aliases: &[],
        bus: "PCI",
        description: "source of randomness for version 1 drivers only",
        make: |pc, id, properties| virtio_rng(pc, id, properties, Generation::Modern),
    },
    Driver {
        name: "virtio-rng-pci-transitional",
        aliases: &[],
        bus: "PCI",
        description: "source of randomness for old and new drivers",
        make: |pc, id, properties| virtio_rng(pc, id, properties, Generation::Transitional),
    },
];

/// Which interfaces a virtio device offers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Generation {
    /// As `disable-legacy` and `disable-modern` say; both by default.
    Either,
    Transitional,
    Modern,
    /// A device that never was for older drivers, which has `disable-legacy` and `disable-modern` all the
    /// same.
    OnlyModern,
}

impl Pc {
    /// Puts a virtio device on the PCI bus; returns where.
    pub(super) fn add_virtio(
        &mut self,
        path: &str,
        device: Arc<dyn VirtioDevice>,
        transport: VirtioTransport,
    ) -> Result<Devfn, BuildError> {
        let failed = |e: String| BuildError::Device(format!("device {path}: {e}"));
        let (devfn, wiring) =
            transport.place.reserve(self, device.kind().name).map_err(|e| failed(e.to_string()))?;
        let pci = VirtioPci::new(device, transport.options, wiring, self.memory.clone())
            .map_err(|e| failed(e.to_string()))?;
        self.pci.attach(devfn, pci.clone());
        self.devices.push(pci);
        Ok(devfn)
    }
}

/// What all virtio devices on PCI have in common.
pub(super) struct VirtioTransport {
    pub(super) place: PciPlace,
    pub(super) options: VirtioPciOptions,
}

impl VirtioTransport {
    pub(super) fn take(
        pc: &Pc,
        path: &str,
        properties: &mut Properties,
        generation: Generation,
    ) -> Result<Self, BuildError> {
        let place = PciPlace::take(pc, properties)?;
        Self::at(place, path, properties, generation)
    }

    /// The same for a device whose place is known.
    pub(super) fn at(
        place: PciPlace,
        path: &str,
        properties: &mut Properties,
        generation: Generation,
    ) -> Result<Self, BuildError> {
        let (disable_legacy, disable_modern) = match generation {
            Generation::Transitional => (false, false),
            Generation::Modern => (true, false),
            Generation::Either | Generation::OnlyModern => {
                let legacy = properties.take_choice("disable-legacy", ON_OFF_AUTO)?.flatten();
                let modern = properties.take_bool("disable-modern")?;
                let both_off = legacy == Some(true) && modern == Some(true);
                match generation {
                    // What there is only for version 1 drivers is the same whatever they say.
                    Generation::OnlyModern => (true, both_off),
                    _ => (legacy.unwrap_or(false), modern.unwrap_or(false)),
                }
            }
        };
        let vectors = properties.take_number("vectors")?;
        let event_idx = properties.take_bool("event_idx")?.unwrap_or(true);
        let indirect_desc = properties.take_bool("indirect_desc")?.unwrap_or(true);
        let options = VirtioPciOptions {
            id: path.to_owned(),
            disable_legacy,
            disable_modern,
            vectors,
            event_idx,
            indirect_desc,
        };
        Ok(Self { place, options })
    }

    /// How many MSI-X vectors there are unless the user says.
    pub(super) fn default_vectors(&mut self, vectors: u16) {
        self.options.vectors.get_or_insert(vectors);
    }
}

fn virtio_balloon(
    pc: &mut Pc,
    path: &str,
    mut properties: Properties,
    generation: Generation,
) -> Result<(), BuildError> {
    let transport = VirtioTransport::take(pc, path, &mut properties, generation)?;
    let deflate_on_oom = properties.take_bool("deflate-on-oom")?.unwrap_or(false);
    let option = properties.option().to_owned();
    properties.finish()?;
    if pc.balloon.is_some() {
        return Err(BuildError::Device(format!("{option}: only one balloon device is supported")));
    }
    let device = VirtioBalloon::new(pc.memory.clone(), pc.spec.memory, deflate_on_oom, &pc.timers);
    pc.balloon = Some(device.clone());
    pc.add_virtio(path, device, transport)?;
    Ok(())
}

fn virtio_rng(
    pc: &mut Pc,
    path: &str,
    mut properties: Properties,
    generation: Generation,
) -> Result<(), BuildError> {
    let transport = VirtioTransport::take(pc, path, &mut properties, generation)?;
    let max_bytes: Option<u64> = properties.take_number("max-bytes")?;
    let period: Option<u64> = properties.take_number("period")?;
    let option = properties.option().to_owned();
    properties.finish()?;
    let period = std::time::Duration::from_millis(period.unwrap_or(1 << 16));
    if period.is_zero() {
        return Err(BuildError::Device(format!("{option}: 'period' expects a positive integer")));
    }
    let limit = max_bytes.map(|max_bytes| RngLimit { max_bytes, period });
    let device = VirtioRng::new(limit, &pc.timers);
    pc.add_virtio(path, device, transport)?;
    Ok(())
}
