//! Structures and the table of them (DSP0134, section 6.1): a formatted area that begins with type, length
//! and handle, then the strings that it refers to by number, each ending in a zero, then one more zero.

use super::SmbiosError;

/// A structure under construction.
pub(super) struct Structure {
    /// The formatted area; its length is filled in at the end.
    area: Vec<u8>,
    strings: Vec<Vec<u8>>,
}

impl Structure {
    pub(super) fn new(kind: u8, handle: u16) -> Self {
        let [low, high] = handle.to_le_bytes();
        Self { area: vec![kind, 0, low, high], strings: Vec::new() }
    }

    pub(super) fn kind(&self) -> u8 {
        self.area[0]
    }

    pub(super) fn byte(&mut self, value: u8) {
        self.area.push(value);
    }

    pub(super) fn word(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn dword(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.area.extend_from_slice(bytes);
    }

    /// A reference to a string; 0 if there is no text.
    pub(super) fn text(&mut self, text: Option<&str>) {
        match text.filter(|text| !text.is_empty()) {
            None => self.byte(0),
            Some(text) => {
                self.add_string(text.as_bytes());
                // More than 255 are refused when the structure is added.
                self.byte(self.strings.len() as u8);
            }
        }
    }

    /// A string; a zero in it would end it.
    pub(super) fn add_string(&mut self, text: &[u8]) {
        let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        // An empty one would end the list.
        let text = if end == 0 { b" " } else { &text[..end] };
        self.strings.push(text.to_vec());
    }

    fn into_bytes(self) -> Result<Vec<u8>, SmbiosError> {
        let Self { mut area, strings } = self;
        if strings.len() > 255 {
            return Err(SmbiosError(format!(
                "an SMBIOS structure of type {} has {} strings, at most 255 are possible",
                area[0],
                strings.len()
            )));
        }
        area[1] = area.len() as u8;
        for string in &strings {
            area.extend_from_slice(string);
            area.push(0);
        }
        area.push(0);
        if strings.is_empty() {
            area.push(0);
        }
        Ok(area)
    }
}

/// Structures one after another.
#[derive(Default)]
pub(super) struct Table {
    pub(super) bytes: Vec<u8>,
    /// How many there are.
    pub(super) count: u16,
    /// Length of the longest.
    pub(super) longest: usize,
}

impl Table {
    pub(super) fn add(&mut self, structure: Structure) -> Result<(), SmbiosError> {
        self.add_bytes(structure.into_bytes()?);
        Ok(())
    }

    /// Adds a structure that is complete.
    pub(super) fn add_bytes(&mut self, bytes: Vec<u8>) {
        self.count = self.count.saturating_add(1);
        self.longest = self.longest.max(bytes.len());
        self.bytes.extend(bytes);
    }
}
