//! What the device holds: items by key, files by name.

use std::collections::BTreeMap;

/// Keys of the items that have a number of their own.
pub mod key {
    /// "QEMU".
    pub const SIGNATURE: u16 = 0x00;
    /// Bits for the interfaces that are there.
    pub const ID: u16 = 0x01;
    /// The machine's UUID, 16 bytes.
    pub const UUID: u16 = 0x02;
    /// RAM in bytes, 64 bits.
    pub const RAM_SIZE: u16 = 0x03;
    /// 1 if the console is a serial port, 16 bits.
    pub const NO_GRAPHIC: u16 = 0x04;
    /// Number of CPUs at start, 16 bits.
    pub const CPUS: u16 = 0x05;
    /// Address that the kernel goes to, 32 bits.
    pub const KERNEL_ADDRESS: u16 = 0x07;
    /// Length of [`KERNEL_DATA`].
    pub const KERNEL_SIZE: u16 = 0x08;
    /// Address that the initial RAM disk goes to.
    pub const INITRD_ADDRESS: u16 = 0x0a;
    /// Length of [`INITRD_DATA`].
    pub const INITRD_SIZE: u16 = 0x0b;
    /// 1 to show a boot menu, 16 bits.
    pub const BOOT_MENU: u16 = 0x0e;
    /// Highest APIC id plus one, 16 bits.
    pub const MAX_CPUS: u16 = 0x0f;
    /// The kernel's protected-mode part.
    pub const KERNEL_DATA: u16 = 0x11;
    /// The initial RAM disk.
    pub const INITRD_DATA: u16 = 0x12;
    /// Address that the command line goes to.
    pub const COMMAND_LINE_ADDRESS: u16 = 0x13;
    /// Length of [`COMMAND_LINE_DATA`], its final zero included.
    pub const COMMAND_LINE_SIZE: u16 = 0x14;
    /// The kernel's command line.
    pub const COMMAND_LINE_DATA: u16 = 0x15;
    /// Address that the kernel's setup goes to.
    pub const SETUP_ADDRESS: u16 = 0x16;
    /// Length of [`SETUP_DATA`].
    pub const SETUP_SIZE: u16 = 0x17;
    /// The kernel's real-mode part.
    pub const SETUP_DATA: u16 = 0x18;
    /// The directory of files.
    pub const DIRECTORY: u16 = 0x19;
    /// Files have keys from here on.
    pub(super) const FILES: u16 = 0x20;
    /// Keys with this bit belong to the architecture.
    pub const ARCH: u16 = 0x8000;
    /// 1 if the PIT's interrupt is input 2 of the I/O APIC, 8 bits.
    pub const IRQ0_OVERRIDE: u16 = ARCH | 0x02;
}

/// Room for a file's name with its final zero, in bytes.
pub const MAX_NAME: usize = 56;
/// Keys for files.
const SLOTS: usize = 0x40;

/// Why there can be no such file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// The name has no room.
    #[error("fw_cfg file name '{0}' is too long: at most {max} bytes", max = MAX_NAME - 1)]
    Name(String),
    /// There are too many files.
    #[error("no room for fw_cfg file '{0}': there are {SLOTS} already")]
    Full(String),
    /// There is one, of another length.
    #[error("duplicate fw_cfg file name: {0}")]
    Duplicate(String),
}

/// Makes an item's bytes.
pub(super) type Maker = Box<dyn Fn() -> Vec<u8> + Send>;
/// Is told an item's bytes.
pub(super) type Listener = Box<dyn Fn(&[u8]) + Send>;

/// What an item holds.
pub enum Content {
    /// These bytes.
    Fixed(Vec<u8>),
    /// These bytes, until the function, called whenever the item is selected, gives others of the same
    /// number.
    Made(Vec<u8>, Maker),
    /// This many bytes, zero at first, which the guest may write; the function is told all of them after
    /// each write.
    Writable(usize, Listener),
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Fixed(bytes)
    }
}

#[derive(Default)]
struct Item {
    bytes: Vec<u8>,
    make: Option<Maker>,
    on_write: Option<Listener>,
}

impl From<Content> for Item {
    fn from(content: Content) -> Self {
        match content {
            Content::Fixed(bytes) => Self { bytes, ..Self::default() },
            Content::Made(bytes, make) => Self { bytes, make: Some(make), on_write: None },
            Content::Writable(len, on_write) => {
                Self { bytes: vec![0; len], make: None, on_write: Some(on_write) }
            }
        }
    }
}

impl Item {
    fn refresh(&mut self) {
        if let Some(make) = &self.make {
            let bytes = make();
            debug_assert_eq!(bytes.len(), self.bytes.len(), "an item keeps its length");
            if bytes.len() == self.bytes.len() {
                self.bytes = bytes;
            }
        }
    }
}

#[derive(Default)]
pub(super) struct Items {
    numbered: BTreeMap<u16, Item>,
    /// In order of their names; a file's place is its key less [`key::FILES`].
    files: Vec<(String, Item)>,
    directory: Vec<u8>,
}

impl Items {
    pub(super) fn set(&mut self, key: u16, content: Content) {
        self.numbered.insert(key, content.into());
    }

    pub(super) fn add_file(&mut self, name: &str, content: Content) -> Result<(), FileError> {
        if name.len() >= MAX_NAME {
            return Err(FileError::Name(name.to_owned()));
        }
        let item = Item::from(content);
        let place = self.files.binary_search_by(|(other, _)| other.as_str().cmp(name));
        match place {
            Ok(at) if self.files[at].1.bytes.len() == item.bytes.len() => self.files[at].1 = item,
            Ok(_) => return Err(FileError::Duplicate(name.to_owned())),
            Err(_) if self.files.len() == SLOTS => return Err(FileError::Full(name.to_owned())),
            Err(at) => self.files.insert(at, (name.to_owned(), item)),
        }
        self.directory = self.make_directory();
        Ok(())
    }

    fn make_directory(&self) -> Vec<u8> {
        let mut directory = (self.files.len() as u32).to_be_bytes().to_vec();
        for ((name, item), key) in self.files.iter().zip(key::FILES..) {
            directory.extend((item.bytes.len() as u32).to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0; 2]);
            let mut padded = [0; MAX_NAME];
            padded[..name.len()].copy_from_slice(name.as_bytes());
            directory.extend(padded);
        }
        directory
    }

    pub(super) fn file(&self, name: &str) -> Option<&[u8]> {
        let at = self.files.binary_search_by(|(other, _)| other.as_str().cmp(name)).ok()?;
        Some(&self.files[at].1.bytes)
    }

    /// Whether an item with this key can be selected.
    pub(super) fn is_key(&self, key: u16) -> bool {
        key & !key::ARCH < key::FILES + SLOTS as u16
    }

    fn item(&mut self, key: u16) -> Option<&mut Item> {
        match key.checked_sub(key::FILES) {
            Some(at) if key & key::ARCH == 0 => {
                self.files.get_mut(usize::from(at)).map(|(_, item)| item)
            }
            _ => self.numbered.get_mut(&key),
        }
    }

    /// Brings an item up to date.
    pub(super) fn refresh(&mut self, key: u16) {
        if let Some(item) = self.item(key) {
            item.refresh();
        }
    }

    pub(super) fn data(&self, key: u16) -> &[u8] {
        if key == key::DIRECTORY {
            return &self.directory;
        }
        let item = match key.checked_sub(key::FILES) {
            Some(at) if key & key::ARCH == 0 => {
                self.files.get(usize::from(at)).map(|(_, item)| item)
            }
            _ => self.numbered.get(&key),
        };
        item.map_or(&[], |item| &item.bytes)
    }

    /// The length of an item that can be written to.
    pub(super) fn writable(&mut self, key: u16) -> Option<usize> {
        self.item(key).filter(|item| item.on_write.is_some()).map(|item| item.bytes.len())
    }

    /// Writes to a writable item within its length.
    pub(super) fn write(&mut self, key: u16, offset: usize, data: &[u8]) {
        if let Some(Item { bytes, on_write: Some(on_write), .. }) = self.item(key) {
            bytes[offset..offset + data.len()].copy_from_slice(data);
            on_write(bytes);
        }
    }

    fn writables(&mut self) -> impl Iterator<Item = (&String, &mut Item)> {
        let files = self.files.iter_mut().map(|(name, item)| (&*name, item));
        files.filter(|(_, item)| item.on_write.is_some())
    }

    pub(super) fn written(&self) -> Vec<(String, Vec<u8>)> {
        let files = self.files.iter().filter(|(_, item)| item.on_write.is_some());
        files.map(|(name, item)| (name.clone(), item.bytes.clone())).collect()
    }

    /// Takes over what the guest had written.
    pub(super) fn restore(&mut self, written: &[(String, Vec<u8>)]) -> Result<(), String> {
        let mine = self.written();
        let fits = mine.len() == written.len()
            && mine.iter().zip(written).all(|(a, b)| a.0 == b.0 && a.1.len() == b.1.len());
        if !fits {
            return Err("other files can be written to".into());
        }
        for ((_, item), (_, bytes)) in self.writables().zip(written) {
            item.bytes.clone_from(bytes);
            if let Some(on_write) = &item.on_write {
                on_write(bytes);
            }
        }
        Ok(())
    }

    /// Forgets what the guest wrote.
    pub(super) fn reset(&mut self) {
        for (_, item) in self.writables() {
            item.bytes.fill(0);
            if let Some(on_write) = &item.on_write {
                on_write(&item.bytes);
            }
        }
    }
}
