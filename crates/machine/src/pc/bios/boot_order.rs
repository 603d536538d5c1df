//! The order in which firmware tries devices: `bootindex=` of each, told to firmware as a list of Open
//! Firmware device paths.

use options::{OptionError, Properties, parse_number};

/// What devices asked for.
#[derive(Debug, Default)]
pub(in crate::pc) struct BootOrder(Vec<(u32, String)>);

impl BootOrder {
    /// Takes `bootindex` out of a device's properties.
    ///
    /// # Errors
    /// If it is no number, or another device has it.
    pub(in crate::pc) fn take(
        &self,
        properties: &mut Properties,
    ) -> Result<Option<u32>, OptionError> {
        self.take_key(properties, "bootindex")
    }

    /// The same for a property of another name.
    ///
    /// # Errors
    /// As for [`Self::take`].
    pub(in crate::pc) fn take_key(
        &self,
        properties: &mut Properties,
        key: &'static str,
    ) -> Result<Option<u32>, OptionError> {
        let index = match properties.take(key) {
            // For a device that is not in the list.
            Some(text) if text == "-1" => None,
            Some(text) => Some(parse_number::<u32>(properties.option(), key, &text)?),
            None => None,
        };
        self.check(index)
    }

    /// Returns the index that a device asks for.
    ///
    /// # Errors
    /// If another device has it.
    pub(in crate::pc) fn check(&self, index: Option<u32>) -> Result<Option<u32>, OptionError> {
        match index.filter(|&index| self.0.iter().any(|(other, _)| *other == index)) {
            Some(taken) => {
                Err(OptionError::new(format!("The bootindex {taken} has already been used")))
            }
            None => Ok(index),
        }
    }

    /// Puts the device with this Open Firmware path into the list, if it has an index.
    pub(in crate::pc) fn add(&mut self, index: Option<u32>, path: impl Into<String>) {
        if let Some(index) = index {
            self.0.push((index, path.into()));
            self.0.sort();
        }
    }

    /// Puts what has this path before all that is in the list by now.
    pub(in crate::pc) fn add_first(&mut self, path: &str) {
        self.0.insert(0, (0, path.to_owned()));
    }

    /// The list as firmware reads it: lines, the last ending in a zero. With `halt` firmware tries
    /// nothing that is not in it.
    pub(in crate::pc) fn file(&self, halt: bool) -> Vec<u8> {
        let mut lines: Vec<&str> = self.0.iter().map(|(_, path)| path.as_str()).collect();
        // With nothing in the list the usual order holds, which is `-boot order=`.
        if lines.is_empty() {
            return Vec::new();
        }
        if halt {
            lines.push("HALT");
        }
        let mut text = lines.join("\n").into_bytes();
        text.push(0);
        text
    }
}

/// The path of a PCI function, `name` being Open Firmware's for its kind.
pub(in crate::pc) fn pci_path(name: &str, devfn: devices::pci::Devfn) -> String {
    let place = match devfn.function() {
        0 => format!("{:x}", devfn.slot()),
        function => format!("{:x},{function:x}", devfn.slot()),
    };
    format!("/pci@i0cf8/{name}@{place}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::pci::Devfn;

    #[test]
    fn the_list_is_in_the_order_of_the_indices() {
        let mut order = BootOrder::default();
        assert!(order.file(false).is_empty() && order.file(true).is_empty());
        order.add(Some(2), pci_path("ide", Devfn::new(1, 1)) + "/drive@0/disk@0");
        order.add(Some(0), pci_path("scsi", Devfn::new(0x1f, 0)) + "/disk@0,0");
        order.add(None, "unlisted");
        let text = "/pci@i0cf8/scsi@1f/disk@0,0\n/pci@i0cf8/ide@1,1/drive@0/disk@0\nHALT\0";
        assert_eq!(order.file(true), text.as_bytes());
        let take = |text: &str| order.take(&mut Properties::parse("-device", text, None).unwrap());
        assert_eq!(take("bootindex=1"), Ok(Some(1)));
        assert_eq!(take("bootindex=-1"), Ok(None));
        assert_eq!(take("a=b"), Ok(None));
        assert!(take("bootindex=2").is_err());
    }
}
