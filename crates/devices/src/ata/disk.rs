//! The commands of a disk (ACS-3, chapter 7; those that ACS-3 no longer has, ATA/ATAPI-6, chapter 8).

use std::sync::Arc;

use block::Drive;
use serde::{Deserialize, Serialize};

use super::device::{Front, Next, Unit, UnitState, host_error};
use super::geometry::{Geometry, Translation};
use super::identify::{MAX_MULTIPLE, MAX_TRIM_BLOCKS};
use super::job::{Act, Failure};
use super::registers::{TaskFile, device_bit, error, status};
use super::smart::{self, Smart, sub};
use super::{BUFFER_LEN, SECTOR};

/// Sectors that are fetched or stored at a time for a host that takes or gives them by PIO.
const BUFFER_SECTORS: u32 = (BUFFER_LEN as u64 / SECTOR) as u32;

/// Command codes.
pub(super) mod op {
    pub(in super::super) const NOP: u8 = 0x00;
    pub(in super::super) const DATA_SET_MANAGEMENT: u8 = 0x06;
    pub(in super::super) const DEVICE_RESET: u8 = 0x08;
    pub(in super::super) const RECALIBRATE: u8 = 0x10;
    pub(in super::super) const READ_SECTORS: u8 = 0x20;
    pub(in super::super) const READ_SECTORS_NORETRY: u8 = 0x21;
    pub(in super::super) const READ_SECTORS_EXT: u8 = 0x24;
    pub(in super::super) const READ_DMA_EXT: u8 = 0x25;
    pub(in super::super) const READ_NATIVE_MAX_EXT: u8 = 0x27;
    pub(in super::super) const READ_MULTIPLE_EXT: u8 = 0x29;
    pub(in super::super) const READ_LOG_EXT: u8 = 0x2f;
    pub(in super::super) const WRITE_SECTORS: u8 = 0x30;
    pub(in super::super) const WRITE_SECTORS_NORETRY: u8 = 0x31;
    pub(in super::super) const WRITE_SECTORS_EXT: u8 = 0x34;
    pub(in super::super) const WRITE_DMA_EXT: u8 = 0x35;
    pub(in super::super) const WRITE_MULTIPLE_EXT: u8 = 0x39;
    pub(in super::super) const WRITE_DMA_FUA_EXT: u8 = 0x3d;
    pub(in super::super) const VERIFY: u8 = 0x40;
    pub(in super::super) const VERIFY_NORETRY: u8 = 0x41;
    pub(in super::super) const VERIFY_EXT: u8 = 0x42;
    pub(in super::super) const READ_LOG_DMA_EXT: u8 = 0x47;
    pub(in super::super) const READ_QUEUED: u8 = 0x60;
    pub(in super::super) const WRITE_QUEUED: u8 = 0x61;
    pub(in super::super) const SEEK: u8 = 0x70;
    pub(in super::super) const DIAGNOSTIC: u8 = 0x90;
    pub(in super::super) const INIT_PARAMETERS: u8 = 0x91;
    pub(in super::super) const STANDBY_IMMEDIATE_OLD: u8 = 0x94;
    pub(in super::super) const IDLE_IMMEDIATE_OLD: u8 = 0x95;
    pub(in super::super) const STANDBY_OLD: u8 = 0x96;
    pub(in super::super) const IDLE_OLD: u8 = 0x97;
    pub(in super::super) const CHECK_POWER_OLD: u8 = 0x98;
    pub(in super::super) const SLEEP_OLD: u8 = 0x99;
    pub(in super::super) const PACKET: u8 = 0xa0;
    pub(in super::super) const IDENTIFY_PACKET: u8 = 0xa1;
    pub(in super::super) const SMART: u8 = 0xb0;
    pub(in super::super) const READ_MULTIPLE: u8 = 0xc4;
    pub(in super::super) const WRITE_MULTIPLE: u8 = 0xc5;
    pub(in super::super) const SET_MULTIPLE: u8 = 0xc6;
    pub(in super::super) const READ_DMA: u8 = 0xc8;
    pub(in super::super) const READ_DMA_NORETRY: u8 = 0xc9;
    pub(in super::super) const WRITE_DMA: u8 = 0xca;
    pub(in super::super) const WRITE_DMA_NORETRY: u8 = 0xcb;
    pub(in super::super) const WRITE_MULTIPLE_FUA_EXT: u8 = 0xce;
    pub(in super::super) const STANDBY_IMMEDIATE: u8 = 0xe0;
    pub(in super::super) const IDLE_IMMEDIATE: u8 = 0xe1;
    pub(in super::super) const STANDBY: u8 = 0xe2;
    pub(in super::super) const IDLE: u8 = 0xe3;
    pub(in super::super) const CHECK_POWER: u8 = 0xe5;
    pub(in super::super) const SLEEP: u8 = 0xe6;
    pub(in super::super) const FLUSH: u8 = 0xe7;
    pub(in super::super) const FLUSH_EXT: u8 = 0xea;
    pub(in super::super) const IDENTIFY: u8 = 0xec;
    pub(in super::super) const SET_FEATURES: u8 = 0xef;
    pub(in super::super) const READ_NATIVE_MAX: u8 = 0xf8;
}

/// What can be set about a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// Serial number; 20 bytes of it count.
    pub serial: String,
    /// Model; 40 bytes of it count.
    pub model: String,
    /// Firmware version; 8 bytes of it count.
    pub version: String,
    /// World wide name, 0 for none.
    pub wwn: u64,
    /// Turns a minute, 1 for none, 0 for nothing said.
    pub rotation_rate: u16,
    /// Bytes that the disk is best written in.
    pub physical_block_size: u32,
    /// Cylinders, heads and sectors; guessed if left out.
    pub geometry: Option<Geometry>,
    /// Takes queued commands: there is a port that can send them.
    pub queued: bool,
    /// Let other processes write to the image meanwhile.
    pub share_rw: bool,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            serial: String::new(),
            model: "QEMU HARDDISK".into(),
            version: "2.5+".into(),
            wwn: 0,
            rotation_rate: 0,
            physical_block_size: 512,
            geometry: None,
            queued: false,
            share_rw: false,
        }
    }
}

/// Why a device can't be had.
#[derive(Debug, thiserror::Error)]
pub enum AtaError {
    /// The drive can't be claimed.
    #[error(transparent)]
    Drive(#[from] block::BlockError),
    /// There is no disk in the drive.
    #[error("Device needs media, but drive is empty")]
    Empty,
    /// The disk is written to, and the image can't be.
    #[error("Block node is read-only")]
    ReadOnly,
    /// A part of the geometry out of range.
    #[error("{name} must be between 1 and {most}")]
    Geometry {
        /// The property.
        name: &'static str,
        /// The most it can be.
        most: u32,
    },
}

impl DiskOptions {
    fn check(&self) -> Result<(), AtaError> {
        let Some(geometry) = self.geometry else { return Ok(()) };
        let parts = [
            ("cyls", geometry.cylinders, 65535),
            ("heads", geometry.heads, 16),
            ("secs", geometry.sectors, 255),
        ];
        match parts.into_iter().find(|&(_, value, most)| value < 1 || value > most) {
            Some((name, _, most)) => Err(AtaError::Geometry { name, most }),
            None => Ok(()),
        }
    }
}

/// Where a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Step {
    /// There is none.
    Idle,
    /// Sectors come from the disk to the buffer; `left` more follow them.
    Fetch {
        lba: u64,
        now: u32,
        left: u32,
    },
    /// The host takes the buffer; `left` sectors at `lba` are still to be fetched.
    Give {
        lba: u64,
        left: u32,
    },
    /// The host fills the buffer with sectors for `lba`; `left` more follow them.
    Fill {
        lba: u64,
        left: u32,
        durable: bool,
    },
    /// The buffer goes to the disk.
    Store {
        lba: u64,
        left: u32,
        durable: bool,
    },
    /// The host takes or gives sectors by DMA.
    Dma {
        lba: u64,
        count: u32,
        write: bool,
        durable: bool,
    },
    /// The host takes the buffer by DMA.
    Send,
    /// The host fills the buffer with so many bytes of ranges by DMA.
    TakeRanges {
        len: u32,
    },
    /// The ranges in the buffer are trimmed.
    Trim,
    /// The host fills the buffer with a log page.
    FillLog,
    Verify {
        lba: u64,
        count: u32,
    },
    Flush,
    /// The write cache is flushed and then off.
    TurnCacheOff,
}

/// What of a disk changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DiskState {
    step: Step,
    /// Sectors of a data block of the multiple commands, 0 if they are off.
    pub(super) multiple: u8,
    /// Sectors of a data block of the command at hand.
    block: u8,
    pub(super) transfer_mode: u8,
    pub(super) look_ahead: bool,
    /// What CHECK POWER MODE tells.
    power: u8,
    #[serde(with = "GeometryState")]
    pub(super) geometry: Geometry,
    pub(super) smart: Smart,
    /// The queued command that failed last, with the registers that tell why.
    queued_error: Option<(u8, TaskFile)>,
}

/// The saved form of a [`Geometry`].
#[derive(Serialize, Deserialize)]
#[serde(remote = "Geometry")]
struct GeometryState {
    cylinders: u32,
    heads: u32,
    sectors: u32,
}

/// What CHECK POWER MODE tells of a disk that is up, and of one that is down.
const ACTIVE: u8 = 0xff;
const STANDBY: u8 = 0x00;
/// Ultra DMA 5, what a disk is set to.
const DEFAULT_MODE: u8 = 0x45;

/// A disk.
pub struct Disk {
    drive: Arc<Drive>,
    options: DiskOptions,
    geometry: Geometry,
    translation: Translation,
    pub(super) state: DiskState,
    initial_write_cache: bool,
}

impl Disk {
    pub(super) fn new(
        drive: Arc<Drive>,
        device: &str,
        options: DiskOptions,
    ) -> Result<Self, AtaError> {
        options.check()?;
        if !drive.is_inserted() {
            return Err(AtaError::Empty);
        }
        if drive.is_read_only() {
            return Err(AtaError::ReadOnly);
        }
        drive.claim(device, options.share_rw)?;
        let (guessed, translation) = Geometry::guess(&drive);
        let geometry = options.geometry.unwrap_or(guessed);
        let (state, initial_write_cache) = (initial(geometry), drive.write_cache());
        Ok(Self { drive, options, geometry, translation, state, initial_write_cache })
    }

    /// Bytes of a data block of the command at hand.
    fn block_len(&self) -> usize {
        usize::from(self.state.block) * SECTOR as usize
    }

    pub(super) fn options(&self) -> &DiskOptions {
        &self.options
    }

    /// What the disk says of its cylinders, heads and sectors.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// What a BIOS should make of them.
    pub fn translation(&self) -> Translation {
        self.translation
    }

    /// Sectors of the disk, as many as there are now.
    pub fn sectors(&self) -> u64 {
        self.drive.sectors()
    }

    fn check_state(&self, state: &DiskState, front: &Front) -> Result<(), String> {
        state.smart.check()?;
        let fits = |lba: u64, count: u64| self.in_range(lba, count);
        let buffered = (front.buffer.len() as u64).div_ceil(SECTOR);
        let sound = match state.step {
            Step::Fetch { lba, now, left } => {
                now <= BUFFER_SECTORS && fits(lba, u64::from(now) + u64::from(left))
            }
            Step::Give { lba, left } => fits(lba, left.into()),
            Step::Fill { lba, left, .. } | Step::Store { lba, left, .. } => {
                fits(lba, buffered + u64::from(left))
            }
            Step::Dma { lba, count, .. } | Step::Verify { lba, count } => fits(lba, count.into()),
            Step::TakeRanges { len } => len as usize <= BUFFER_LEN,
            _ => true,
        };
        let geometry = state.geometry;
        let shaped = (1..=65535).contains(&geometry.cylinders)
            && (1..=16).contains(&geometry.heads)
            && (1..=255).contains(&geometry.sectors);
        let block = state.block.is_power_of_two() && state.block <= MAX_MULTIPLE;
        let multiple = state.multiple <= MAX_MULTIPLE;
        if sound && shaped && block && multiple { Ok(()) } else { Err("impossible command".into()) }
    }

    fn in_range(&self, lba: u64, count: u64) -> bool {
        lba.checked_add(count).is_some_and(|end| end <= self.sectors())
    }

    /// First sector of a command with 28-bit addresses or cylinders, heads and sectors.
    fn lba28(&self, registers: &TaskFile) -> Option<u64> {
        let low = registers.lba & 0xff_ffff;
        let high = u64::from(registers.device & 0xf);
        if registers.device & device_bit::LBA != 0 {
            return Some(high << 24 | low);
        }
        let Geometry { heads, sectors, .. } = self.state.geometry;
        let sector = (low & 0xff).checked_sub(1)?;
        ((low >> 8) * u64::from(heads) + high)
            .checked_mul(sectors.into())
            .map(|track| track + sector)
    }

    /// Commands on sectors; `None` if `code` is none.
    fn media_command(&mut self, front: &mut Front, code: u8) -> Option<Result<(), u8>> {
        let registers = &front.registers;
        let is_ext = matches!(
            code,
            op::READ_SECTORS_EXT
                | op::READ_DMA_EXT
                | op::READ_MULTIPLE_EXT
                | op::WRITE_SECTORS_EXT
                | op::WRITE_DMA_EXT
                | op::WRITE_MULTIPLE_EXT
                | op::WRITE_DMA_FUA_EXT
                | op::WRITE_MULTIPLE_FUA_EXT
                | op::VERIFY_EXT
        );
        let multiple = matches!(
            code,
            op::READ_MULTIPLE
                | op::READ_MULTIPLE_EXT
                | op::WRITE_MULTIPLE
                | op::WRITE_MULTIPLE_EXT
                | op::WRITE_MULTIPLE_FUA_EXT
        );
        let durable = matches!(code, op::WRITE_DMA_FUA_EXT | op::WRITE_MULTIPLE_FUA_EXT);
        let (lba, count) = if is_ext {
            (Some(registers.lba), registers.count48())
        } else {
            (self.lba28(registers), registers.count28())
        };
        let start = |lba: u64| match code {
            op::READ_SECTORS
            | op::READ_SECTORS_NORETRY
            | op::READ_SECTORS_EXT
            | op::READ_MULTIPLE
            | op::READ_MULTIPLE_EXT => Some(fetch(lba, count)),
            op::WRITE_SECTORS
            | op::WRITE_SECTORS_NORETRY
            | op::WRITE_SECTORS_EXT
            | op::WRITE_MULTIPLE
            | op::WRITE_MULTIPLE_EXT
            | op::WRITE_MULTIPLE_FUA_EXT => Some(Step::Fill { lba, left: count, durable }),
            op::READ_DMA | op::READ_DMA_NORETRY | op::READ_DMA_EXT => {
                Some(Step::Dma { lba, count, write: false, durable })
            }
            op::WRITE_DMA | op::WRITE_DMA_NORETRY | op::WRITE_DMA_EXT | op::WRITE_DMA_FUA_EXT => {
                Some(Step::Dma { lba, count, write: true, durable })
            }
            op::VERIFY | op::VERIFY_NORETRY | op::VERIFY_EXT => Some(Step::Verify { lba, count }),
            _ => None,
        };
        let step = start(lba.unwrap_or(0))?;
        if multiple && self.state.multiple == 0 {
            return Some(Err(error::ABRT));
        }
        if lba.is_none_or(|lba| !self.in_range(lba, count.into())) {
            return Some(Err(error::IDNF));
        }
        self.state.power = ACTIVE;
        self.state.block = if multiple { self.state.multiple } else { 1 };
        self.state.step = step;
        if let Step::Fill { lba, left, durable } = step {
            self.ask(front, (lba, left, durable), false);
        }
        Some(Ok(()))
    }

    /// Asks the host for the next sectors.
    fn ask(&mut self, front: &mut Front, (lba, left, durable): (u64, u32, bool), interrupt: bool) {
        let now = left.min(BUFFER_SECTORS);
        front.set_data(vec![0; now as usize * SECTOR as usize]);
        self.state.step = Step::Fill { lba, left: left - now, durable };
        front.show_block(self.block_len(), interrupt);
    }

    fn give(&mut self, front: &mut Front, data: Vec<u8>) {
        self.state.block = 1;
        self.state.step = Step::Give { lba: 0, left: 0 };
        front.set_data(data);
        front.show_block(self.block_len(), true);
    }

    /// Commands that are not on sectors.
    ///
    /// # Errors
    /// The error bits that the command ends with.
    fn other_command(&mut self, front: &mut Front, code: u8) -> Result<(), u8> {
        match code {
            op::IDENTIFY => self.give(front, self.identify()),
            op::SET_MULTIPLE => {
                let count = front.registers.count as u8;
                if count > MAX_MULTIPLE || count != 0 && !count.is_power_of_two() {
                    return Err(error::ABRT);
                }
                self.state.multiple = count;
            }
            op::SET_FEATURES => return self.set_features(front),
            op::FLUSH | op::FLUSH_EXT => self.state.step = Step::Flush,
            op::DATA_SET_MANAGEMENT => {
                // A host that writes the count once leaves a byte of the last command above it.
                let blocks = front.registers.count & 0xff;
                let is_trim = front.registers.features as u8 == 1;
                if !is_trim || blocks == 0 || blocks > MAX_TRIM_BLOCKS {
                    return Err(error::ABRT);
                }
                self.state.step = Step::TakeRanges { len: u32::from(blocks) * SECTOR as u32 };
            }
            op::SMART => return self.smart(front),
            op::READ_LOG_EXT => {
                let page = self.read_log(front)?;
                self.give(front, page);
            }
            op::READ_LOG_DMA_EXT => {
                let page = self.read_log(front)?;
                front.set_data(page);
                self.state.step = Step::Send;
            }
            op::RECALIBRATE..=0x1f => {}
            op::SEEK => {
                let lba = self.lba28(&front.registers);
                if lba.is_none_or(|lba| !self.in_range(lba, 1)) {
                    return Err(error::IDNF);
                }
            }
            op::INIT_PARAMETERS => self.init_parameters(&front.registers)?,
            op::READ_NATIVE_MAX => {
                let last = (self.sectors().max(1) - 1).min(0x0fff_ffff);
                let registers = &mut front.registers;
                registers.lba = registers.lba & !0xff_ffff | last & 0xff_ffff;
                registers.device = registers.device & !0xf | (last >> 24) as u8;
            }
            op::READ_NATIVE_MAX_EXT => front.registers.lba = self.sectors().max(1) - 1,
            op::IDLE | op::IDLE_IMMEDIATE | op::IDLE_OLD | op::IDLE_IMMEDIATE_OLD => {
                self.state.power = ACTIVE
            }
            op::STANDBY
            | op::STANDBY_IMMEDIATE
            | op::SLEEP
            | op::STANDBY_OLD
            | op::STANDBY_IMMEDIATE_OLD
            | op::SLEEP_OLD => {
                // What is in the cache is safe before the disk rests.
                self.state.power = STANDBY;
                self.state.step = Step::Flush;
            }
            op::CHECK_POWER | op::CHECK_POWER_OLD => {
                front.registers.count = self.state.power.into()
            }
            // Whoever takes the disk for a packet device learns better from the registers.
            op::PACKET | op::IDENTIFY_PACKET => {
                front.registers.set_signature(false);
                return Err(error::ABRT);
            }
            // NOP always fails; a queued command does not come this way.
            op::NOP | op::READ_QUEUED | op::WRITE_QUEUED => return Err(error::ABRT),
            _ => return Err(error::ABRT),
        }
        Ok(())
    }

    fn init_parameters(&mut self, registers: &TaskFile) -> Result<(), u8> {
        let heads = u32::from(registers.device & 0xf) + 1;
        let sectors = u32::from(registers.count as u8);
        if sectors == 0 {
            return Err(error::ABRT);
        }
        let cylinders = self.sectors() / u64::from(heads * sectors);
        let cylinders = cylinders.clamp(1, 65535) as u32;
        self.state.geometry = Geometry { cylinders, heads, sectors };
        Ok(())
    }

    fn set_features(&mut self, front: &Front) -> Result<(), u8> {
        let count = front.registers.count as u8;
        match front.registers.features as u8 {
            0x02 => self.drive.set_write_cache(true),
            0x82 => self.state.step = Step::TurnCacheOff,
            0x03 => {
                let known = match count >> 3 {
                    0 => count <= 1,
                    1 => count <= 0x0c,
                    2 | 4 => count & 7 <= 2,
                    8 => count & 7 <= 5,
                    _ => false,
                };
                if !known {
                    return Err(error::ABRT);
                }
                // PIO modes are not among those that can be asked for later.
                self.state.transfer_mode = count;
            }
            0x55 => self.state.look_ahead = false,
            0xaa => self.state.look_ahead = true,
            // Power management, acoustics, settings over a reset: nothing to set.
            0x05 | 0x85 | 0x42 | 0xc2 | 0x66 | 0xcc => {}
            _ => return Err(error::ABRT),
        }
        Ok(())
    }

    fn smart(&mut self, front: &mut Front) -> Result<(), u8> {
        let registers = &front.registers;
        let (what, count) = (registers.features as u8, registers.count as u8);
        let address = registers.lba as u8;
        if registers.lba & smart::KEY_MASK != smart::KEY {
            return Err(error::ABRT);
        }
        if !self.state.smart.enabled && what != sub::ENABLE {
            return Err(error::ABRT);
        }
        match what {
            sub::ENABLE => self.state.smart.enabled = true,
            sub::DISABLE => self.state.smart.enabled = false,
            sub::AUTOSAVE => match count {
                0x00 => self.state.smart.autosave = false,
                0xf1 => self.state.smart.autosave = true,
                _ => return Err(error::ABRT),
            },
            // The key stays in the registers: nothing is about to fail.
            sub::RETURN_STATUS | sub::SAVE_VALUES | sub::AUTO_OFFLINE => {}
            sub::EXECUTE_OFFLINE => {
                if !self.state.smart.test(address) {
                    return Err(error::ABRT);
                }
            }
            sub::READ_DATA => self.give(front, self.state.smart.data()),
            sub::READ_THRESHOLDS => self.give(front, Smart::thresholds()),
            sub::READ_LOG => {
                let is_host = (smart::log::HOST_FIRST..=smart::log::HOST_LAST).contains(&address);
                let page = match self.state.smart.log(address) {
                    _ if count != 1 => return Err(error::ABRT),
                    Some(page) => page,
                    // What the host wrote to its own logs is not kept.
                    None if is_host => vec![0; SECTOR as usize],
                    None => return Err(error::ABRT),
                };
                self.give(front, page);
            }
            sub::WRITE_LOG => {
                let is_host = (smart::log::HOST_FIRST..=smart::log::HOST_LAST).contains(&address);
                if count != 1 || !is_host {
                    return Err(error::ABRT);
                }
                front.set_data(vec![0; SECTOR as usize]);
                self.state.block = 1;
                self.state.step = Step::FillLog;
                front.show_block(SECTOR as usize, false);
            }
            _ => return Err(error::ABRT),
        }
        Ok(())
    }

    /// One page of a general purpose log.
    fn read_log(&mut self, front: &Front) -> Result<Vec<u8>, u8> {
        let registers = &front.registers;
        let (address, page) = (registers.lba as u8, (registers.lba >> 8 & 0xff) as u8);
        if registers.count != 1 {
            return Err(error::ABRT);
        }
        match (address, page) {
            (smart::log::DIRECTORY, 0) => Ok(smart::general_directory()),
            (smart::log::QUEUED_ERROR, 0) => {
                let last = self.state.queued_error.take();
                let (tag, registers) = last
                    .map_or((None, TaskFile::default()), |(tag, registers)| (Some(tag), registers));
                Ok(smart::queued_error(tag, &registers))
            }
            (smart::log::IDENTIFY, 0) => Ok(smart::identify_pages()),
            (smart::log::IDENTIFY, 1) => Ok(self.identify()),
            _ => Err(error::ABRT),
        }
    }

    pub(super) fn queue(
        &mut self,
        front: &mut Front,
        registers: &TaskFile,
        code: u8,
    ) -> Option<Act> {
        let tag = (registers.count >> 3) as u8 & 31;
        let count = if registers.features == 0 { 0x1_0000 } else { u64::from(registers.features) };
        let (offset, len) = (registers.lba.saturating_mul(SECTOR), count * SECTOR);
        // Bit 7 of the device register asks for what was written to be durable.
        let durable = registers.device & 0x80 != 0;
        let act = match code {
            op::READ_QUEUED => Act::Read { offset, len },
            op::WRITE_QUEUED => Act::Write { offset, len, durable },
            _ => {
                self.refuse_queued(front, tag, registers.lba, error::ABRT);
                return None;
            }
        };
        if !self.options.queued || !self.in_range(registers.lba, count) {
            let bits = if self.options.queued { error::IDNF } else { error::ABRT };
            self.refuse_queued(front, tag, registers.lba, bits);
            return None;
        }
        self.state.power = ACTIVE;
        Some(act)
    }

    pub(super) fn queued_failed(
        &mut self,
        front: &mut Front,
        tag: u8,
        position: u64,
        failure: &Failure,
    ) {
        self.refuse_queued(front, tag, position / SECTOR, host_error(failure));
    }

    fn refuse_queued(&mut self, front: &mut Front, tag: u8, lba: u64, bits: u8) {
        front.fail(bits);
        front.registers.lba = lba & 0xffff_ffff_ffff;
        self.state.step = Step::Idle;
        self.state.queued_error = Some((tag, front.registers.clone()));
    }
}

impl Unit for Disk {
    fn drive(&self) -> &Arc<Drive> {
        &self.drive
    }

    fn is_packet(&self) -> bool {
        false
    }

    fn command(&mut self, front: &mut Front, code: u8) {
        front.busy();
        if !matches!(code, op::READ_LOG_EXT | op::READ_LOG_DMA_EXT) {
            self.state.queued_error = None;
        }
        let done =
            self.media_command(front, code).unwrap_or_else(|| self.other_command(front, code));
        match (done, self.state.step) {
            (Ok(()), Step::Idle) => front.succeed(),
            (Ok(()), _) => {}
            (Err(error), _) => {
                self.state.step = Step::Idle;
                front.fail(error);
            }
        }
    }

    fn next(&self) -> Next {
        match self.state.step {
            Step::Idle => Next::Command,
            Step::Give { .. } => Next::DataIn,
            Step::Fill { .. } | Step::FillLog => Next::DataOut,
            Step::Dma { .. } | Step::Send | Step::TakeRanges { .. } => Next::Dma,
            Step::Fetch { .. }
            | Step::Store { .. }
            | Step::Trim
            | Step::Verify { .. }
            | Step::Flush
            | Step::TurnCacheOff => Next::Work,
        }
    }

    fn act(&self, front: &Front) -> Option<Act> {
        let bytes = |sectors: u32| u64::from(sectors) * SECTOR;
        Some(match self.state.step {
            Step::Fetch { lba, now, .. } => Act::Fetch { offset: lba * SECTOR, len: bytes(now) },
            Step::Store { lba, durable, .. } => {
                Act::Store { offset: lba * SECTOR, data: front.buffer.clone(), durable }
            }
            Step::Dma { lba, count, write: false, .. } => {
                Act::Read { offset: lba * SECTOR, len: bytes(count) }
            }
            Step::Dma { lba, count, write: true, durable } => {
                Act::Write { offset: lba * SECTOR, len: bytes(count), durable }
            }
            Step::Send => Act::Send { data: front.buffer.clone() },
            Step::TakeRanges { len } => Act::Take { len: len.into() },
            Step::Trim => Act::Trim { ranges: ranges(&front.buffer).collect() },
            Step::Verify { lba, count } => Act::Verify { offset: lba * SECTOR, len: bytes(count) },
            Step::Flush | Step::TurnCacheOff => Act::Flush,
            Step::Idle | Step::Give { .. } | Step::Fill { .. } | Step::FillLog => return None,
        })
    }

    /// The host moved a whole data block.
    fn block_done(&mut self, front: &mut Front) {
        let more = (front.at as usize) < front.buffer.len();
        match self.state.step {
            Step::Give { .. } | Step::Fill { .. } if more => {
                front.show_block(self.block_len(), true);
            }
            Step::Give { left: 0, .. } => {
                // The interrupt was the last block's own.
                front.registers.status = status::DRDY | status::DSC;
                front.set_data(Vec::new());
                self.state.step = Step::Idle;
            }
            Step::Give { lba, left } => {
                front.set_data(Vec::new());
                front.busy();
                self.state.step = fetch(lba, left);
            }
            Step::Fill { lba, left, durable } => {
                front.busy();
                self.state.step = Step::Store { lba, left, durable };
            }
            Step::FillLog => {
                self.state.step = Step::Idle;
                front.succeed();
            }
            _ => {}
        }
    }

    /// The job of this step was done; `data` is what it brought for the buffer.
    fn done(&mut self, front: &mut Front, data: Option<Vec<u8>>) {
        let data = data.unwrap_or_default();
        match self.state.step {
            Step::Fetch { lba, now, left } => {
                self.state.step = Step::Give { lba: lba + u64::from(now), left };
                front.set_data(data);
                front.show_block(self.block_len(), true);
            }
            Step::Store { lba, left, durable } if left > 0 => {
                let stored = front.buffer.len() as u64 / SECTOR;
                self.ask(front, (lba + stored, left, durable), true);
            }
            Step::TakeRanges { len } => {
                let is_whole = data.len() == len as usize;
                let fits = |(offset, len): (u64, u64)| self.in_range(offset / SECTOR, len / SECTOR);
                front.set_data(data);
                if is_whole && ranges(&front.buffer).all(fits) {
                    self.state.step = Step::Trim;
                } else {
                    self.state.step = Step::Idle;
                    front.fail(error::ABRT);
                }
            }
            step => {
                if step == Step::TurnCacheOff {
                    self.drive.set_write_cache(false);
                }
                self.state.step = Step::Idle;
                front.succeed();
            }
        }
    }

    /// The job of this step failed.
    fn failed(&mut self, front: &mut Front, failure: Failure) {
        match self.state.step {
            Step::Fetch { lba, .. }
            | Step::Store { lba, .. }
            | Step::Dma { lba, .. }
            | Step::Verify { lba, .. } => front.registers.lba = lba,
            _ => {}
        }
        self.forget();
        front.fail(host_error(&failure));
    }

    fn forget(&mut self) {
        self.state.step = Step::Idle;
    }

    fn soft_reset(&mut self) {
        self.forget();
        self.state.power = ACTIVE;
        self.state.queued_error = None;
    }

    fn reset(&mut self) {
        self.state = initial(self.geometry);
        self.drive.set_write_cache(self.initial_write_cache);
        self.drive.reset_io_status();
    }

    fn save(&self) -> UnitState {
        UnitState::Disk { state: self.state.clone(), write_cache: self.drive.write_cache() }
    }

    fn check(&self, state: &UnitState, front: &Front) -> Result<(), String> {
        match state {
            UnitState::Disk { state, .. } => self.check_state(state, front),
            UnitState::CdRom(_) => Err("state of a CD-ROM drive".into()),
        }
    }

    fn restore(&mut self, state: &UnitState) {
        if let UnitState::Disk { state, write_cache } = state {
            self.state = state.clone();
            self.drive.set_write_cache(*write_cache);
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.drive.release();
    }
}

/// What changes, after power on.
fn initial(geometry: Geometry) -> DiskState {
    DiskState {
        step: Step::Idle,
        multiple: MAX_MULTIPLE,
        block: 1,
        transfer_mode: DEFAULT_MODE,
        look_ahead: true,
        power: ACTIVE,
        geometry,
        smart: Smart::default(),
        queued_error: None,
    }
}

fn fetch(lba: u64, count: u32) -> Step {
    let now = count.min(BUFFER_SECTORS);
    Step::Fetch { lba, now, left: count - now }
}

/// Offsets and lengths, in bytes, of the ranges of DATA SET MANAGEMENT in `data`.
fn ranges(data: &[u8]) -> impl Iterator<Item = (u64, u64)> + '_ {
    let entries = data.chunks_exact(8).map(|entry| {
        let entry = u64::from_le_bytes(entry.try_into().unwrap_or_default());
        ((entry & 0xffff_ffff_ffff) * SECTOR, (entry >> 48) * SECTOR)
    });
    entries.filter(|&(_, len)| len > 0)
}
