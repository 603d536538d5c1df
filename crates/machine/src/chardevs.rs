//! The character devices of a machine, by id, and who has them.

use std::collections::BTreeSet;
use std::sync::Arc;

use bus::{MachineControl, ShutdownCause};
use chardev::{CharBackend, Chardev, ChardevInfo, ChardevSpec, Mux};

use crate::BuildError;
use crate::spec::NamedChardev;

/// One character device.
enum Opened {
    Plain(Arc<Chardev>),
    Shared(Arc<Mux>),
}

/// All character devices of a machine.
#[derive(Default)]
pub struct Chardevs {
    all: Vec<Opened>,
    claimed: BTreeSet<String>,
}

impl Chardevs {
    /// Opens them in order. A user who leaves by way of a multiplexer shuts the machine down.
    ///
    /// # Errors
    /// Names the first that can't be opened.
    pub fn open(
        specs: &[NamedChardev],
        control: &Arc<dyn MachineControl>,
    ) -> Result<Self, BuildError> {
        let notify = |notice: &chardev::Notice| eprintln!("{notice}");
        let mut all = Vec::new();
        for NamedChardev { id, spec } in specs {
            let failed = |source| BuildError::Chardev { id: id.clone(), source };
            all.push(match spec {
                ChardevSpec::Mux(_) => {
                    let control = Arc::clone(control);
                    let quit = move || control.request_shutdown(ShutdownCause::HostUi);
                    Opened::Shared(Mux::open(id, spec, &notify, quit).map_err(failed)?)
                }
                plain => Opened::Plain(Chardev::open(id, plain, &notify).map_err(failed)?),
            });
        }
        Ok(Self { all, claimed: BTreeSet::new() })
    }

    /// Gives the character device `id` to a guest device. Only a multiplexer can be had twice.
    ///
    /// # Errors
    /// If there is none, or somebody has it.
    pub fn claim(&mut self, id: &str) -> Result<Arc<dyn CharBackend>, BuildError> {
        let found = self.all.iter().find(|opened| opened.info().label == id);
        match found {
            None => Err(BuildError::Device(format!("chardev \"{id}\" not found"))),
            Some(Opened::Shared(mux)) => Ok(mux.port()),
            Some(Opened::Plain(chardev)) if self.claimed.insert(id.to_owned()) => {
                Ok(chardev.clone())
            }
            Some(Opened::Plain(_)) => {
                Err(BuildError::Device(format!("chardev '{id}' is already in use")))
            }
        }
    }

    /// What there is to tell of them.
    pub fn infos(&self) -> Vec<ChardevInfo> {
        self.all.iter().map(Opened::info).collect()
    }
}

impl Opened {
    fn info(&self) -> ChardevInfo {
        match self {
            Self::Plain(chardev) => chardev.info(),
            Self::Shared(mux) => mux.info(),
        }
    }
}
