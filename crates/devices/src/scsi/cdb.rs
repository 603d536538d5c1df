//! Command descriptor blocks (SPC-4, section 4.2).

/// Operation codes, under their names in SPC, SBC and MMC.
pub mod op {
    /// TEST UNIT READY.
    pub const TEST_UNIT_READY: u8 = 0x00;
    /// REZERO UNIT of SCSI-2.
    pub const REZERO_UNIT: u8 = 0x01;
    /// REQUEST SENSE.
    pub const REQUEST_SENSE: u8 = 0x03;
    /// READ(6).
    pub const READ_6: u8 = 0x08;
    /// WRITE(6).
    pub const WRITE_6: u8 = 0x0a;
    /// INQUIRY.
    pub const INQUIRY: u8 = 0x12;
    /// MODE SELECT(6).
    pub const MODE_SELECT_6: u8 = 0x15;
    /// RESERVE(6) of SPC-2.
    pub const RESERVE_6: u8 = 0x16;
    /// RELEASE(6) of SPC-2.
    pub const RELEASE_6: u8 = 0x17;
    /// MODE SENSE(6).
    pub const MODE_SENSE_6: u8 = 0x1a;
    /// START STOP UNIT.
    pub const START_STOP_UNIT: u8 = 0x1b;
    /// PREVENT ALLOW MEDIUM REMOVAL.
    pub const PREVENT_ALLOW: u8 = 0x1e;
    /// READ CAPACITY(10).
    pub const READ_CAPACITY_10: u8 = 0x25;
    /// READ(10).
    pub const READ_10: u8 = 0x28;
    /// WRITE(10).
    pub const WRITE_10: u8 = 0x2a;
    /// SEEK(10).
    pub const SEEK_10: u8 = 0x2b;
    /// WRITE AND VERIFY(10).
    pub const WRITE_VERIFY_10: u8 = 0x2e;
    /// VERIFY(10).
    pub const VERIFY_10: u8 = 0x2f;
    /// SYNCHRONIZE CACHE(10).
    pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    /// WRITE SAME(10).
    pub const WRITE_SAME_10: u8 = 0x41;
    /// UNMAP of SBC.
    pub const UNMAP: u8 = 0x42;
    /// READ SUB-CHANNEL of MMC, which shares its code with UNMAP of SBC.
    pub const READ_SUB_CHANNEL: u8 = 0x42;
    /// READ TOC/PMA/ATIP.
    pub const READ_TOC: u8 = 0x43;
    /// PLAY AUDIO(10).
    pub const PLAY_AUDIO_10: u8 = 0x45;
    /// GET CONFIGURATION.
    pub const GET_CONFIGURATION: u8 = 0x46;
    /// PLAY AUDIO MSF.
    pub const PLAY_AUDIO_MSF: u8 = 0x47;
    /// GET EVENT STATUS NOTIFICATION.
    pub const GET_EVENT_STATUS: u8 = 0x4a;
    /// PAUSE/RESUME.
    pub const PAUSE_RESUME: u8 = 0x4b;
    /// STOP PLAY/SCAN.
    pub const STOP_PLAY: u8 = 0x4e;
    /// READ DISC INFORMATION.
    pub const READ_DISC_INFORMATION: u8 = 0x51;
    /// READ TRACK INFORMATION.
    pub const READ_TRACK_INFORMATION: u8 = 0x52;
    /// MODE SELECT(10).
    pub const MODE_SELECT_10: u8 = 0x55;
    /// RESERVE(10) of SPC-2.
    pub const RESERVE_10: u8 = 0x56;
    /// RELEASE(10) of SPC-2.
    pub const RELEASE_10: u8 = 0x57;
    /// MODE SENSE(10).
    pub const MODE_SENSE_10: u8 = 0x5a;
    /// READ(16).
    pub const READ_16: u8 = 0x88;
    /// WRITE(16).
    pub const WRITE_16: u8 = 0x8a;
    /// WRITE AND VERIFY(16).
    pub const WRITE_VERIFY_16: u8 = 0x8e;
    /// VERIFY(16).
    pub const VERIFY_16: u8 = 0x8f;
    /// SYNCHRONIZE CACHE(16).
    pub const SYNCHRONIZE_CACHE_16: u8 = 0x91;
    /// WRITE SAME(16).
    pub const WRITE_SAME_16: u8 = 0x93;
    /// SERVICE ACTION IN(16).
    pub const SERVICE_ACTION_IN_16: u8 = 0x9e;
    /// REPORT LUNS.
    pub const REPORT_LUNS: u8 = 0xa0;
    /// READ(12).
    pub const READ_12: u8 = 0xa8;
    /// WRITE(12).
    pub const WRITE_12: u8 = 0xaa;
    /// READ DVD STRUCTURE.
    pub const READ_DVD_STRUCTURE: u8 = 0xad;
    /// WRITE AND VERIFY(12).
    pub const WRITE_VERIFY_12: u8 = 0xae;
    /// VERIFY(12).
    pub const VERIFY_12: u8 = 0xaf;
    /// READ CD MSF.
    pub const READ_CD_MSF: u8 = 0xb9;
    /// SET CD SPEED.
    pub const SET_CD_SPEED: u8 = 0xbb;
    /// MECHANISM STATUS.
    pub const MECHANISM_STATUS: u8 = 0xbd;
    /// READ CD.
    pub const READ_CD: u8 = 0xbe;
}

/// Most bytes of a block that any transport carries.
pub const MAX_CDB: usize = 32;

/// A command descriptor block; what the transport did not bring is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cdb([u8; MAX_CDB]);

impl Cdb {
    /// From the bytes that a transport brought; those past [`MAX_CDB`] are left out.
    pub fn new(bytes: &[u8]) -> Self {
        let mut cdb = [0; MAX_CDB];
        let len = bytes.len().min(MAX_CDB);
        cdb[..len].copy_from_slice(&bytes[..len]);
        Self(cdb)
    }

    /// Operation code.
    pub fn opcode(&self) -> u8 {
        self.0[0]
    }

    /// Byte `at`.
    pub fn u8(&self, at: usize) -> u8 {
        self.0[at]
    }

    /// Big-endian number of 16 bits from byte `at` on.
    pub fn u16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.0[at], self.0[at + 1]])
    }

    /// Big-endian number of 24 bits.
    pub fn u24(&self, at: usize) -> u32 {
        u32::from_be_bytes([0, self.0[at], self.0[at + 1], self.0[at + 2]])
    }

    /// Big-endian number of 32 bits.
    pub fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) << 16 | u32::from(self.u16(at + 2))
    }

    /// Big-endian number of 64 bits.
    pub fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) << 32 | u64::from(self.u32(at + 4))
    }

    /// Logical block address of a command that reads, writes or the like, by the layout of its group.
    pub fn lba(&self) -> u64 {
        match self.0[0] >> 5 {
            0 => u64::from(self.u24(1) & 0x1f_ffff),
            4 => self.u64(2),
            _ => u64::from(self.u32(2)),
        }
    }

    /// Number of blocks of such a command.
    pub fn blocks(&self) -> u64 {
        match self.0[0] >> 5 {
            // No blocks means all that the byte can't count.
            0 if self.0[4] == 0 => 256,
            0 => u64::from(self.0[4]),
            4 => u64::from(self.u32(10)),
            5 => u64::from(self.u32(6)),
            _ => u64::from(self.u16(7)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_counts_go_by_the_group() {
        let six = Cdb::new(&[op::READ_6, 0xff, 2, 3, 0, 0]);
        assert_eq!((six.lba(), six.blocks()), (0x1f_0203, 256));
        let ten = Cdb::new(&[op::READ_10, 0, 1, 2, 3, 4, 0, 5, 6, 0]);
        assert_eq!((ten.lba(), ten.blocks()), (0x0102_0304, 0x0506));
        let twelve = Cdb::new(&[op::READ_12, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0]);
        assert_eq!((twelve.lba(), twelve.blocks()), (0x0102_0304, 0x0506_0708));
        let sixteen = Cdb::new(&[op::READ_16, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0]);
        assert_eq!((sixteen.lba(), sixteen.blocks()), (0x0102_0304_0506_0708, 0x090a_0b0c));
        assert_eq!(Cdb::new(&[]).opcode(), op::TEST_UNIT_READY);
        assert_eq!(Cdb::new(&[0xff; 64]).u64(24), u64::MAX);
    }
}
