//! Requests and responses (specification, section 5.7.6). All numbers are little-endian.

/// Requests.
pub(super) mod request {
    pub(in super::super) const GET_DISPLAY_INFO: u32 = 0x100;
    pub(in super::super) const RESOURCE_CREATE_2D: u32 = 0x101;
    pub(in super::super) const RESOURCE_UNREF: u32 = 0x102;
    pub(in super::super) const SET_SCANOUT: u32 = 0x103;
    pub(in super::super) const RESOURCE_FLUSH: u32 = 0x104;
    pub(in super::super) const TRANSFER_TO_HOST_2D: u32 = 0x105;
    pub(in super::super) const RESOURCE_ATTACH_BACKING: u32 = 0x106;
    pub(in super::super) const RESOURCE_DETACH_BACKING: u32 = 0x107;
    pub(in super::super) const GET_EDID: u32 = 0x10a;
    pub(in super::super) const UPDATE_CURSOR: u32 = 0x300;
    pub(in super::super) const MOVE_CURSOR: u32 = 0x301;
}

/// Responses that all is well.
pub(super) mod ok {
    pub(in super::super) const NO_DATA: u32 = 0x1100;
    pub(in super::super) const DISPLAY_INFO: u32 = 0x1101;
    pub(in super::super) const EDID: u32 = 0x1104;
}

/// Why a request failed; the number is the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Failure {
    Unspecified = 0x1200,
    OutOfMemory = 0x1201,
    InvalidScanout = 0x1202,
    InvalidResource = 0x1203,
    InvalidParameter = 0x1205,
}

/// Bytes of the header that each request and response begins with.
pub(super) const HEADER: usize = 24;
/// Header flag: the response names the fence.
const FLAG_FENCE: u32 = 1;

/// A request: its bytes, of which those that are missing read as zero.
pub(super) struct Request<'a>(pub(super) &'a [u8]);

impl Request<'_> {
    /// The 32 bits at `offset`.
    pub(super) fn u32(&self, offset: usize) -> u32 {
        self.u64(offset) as u32
    }

    /// The 64 bits at `offset`.
    pub(super) fn u64(&self, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        for (byte, &found) in bytes.iter_mut().zip(self.0.iter().skip(offset)) {
            *byte = found;
        }
        u64::from_le_bytes(bytes)
    }

    /// The rectangle at `offset`.
    pub(super) fn rect(&self, offset: usize) -> display::Rect {
        let [x, y, width, height] = [0, 4, 8, 12].map(|at| self.u32(offset + at));
        display::Rect { x, y, width, height }
    }

    /// The header of a response of kind `kind` to this.
    pub(super) fn response(&self, kind: u32) -> Vec<u8> {
        let mut header = vec![0; HEADER];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        if self.u32(4) & FLAG_FENCE != 0 {
            header[4..8].copy_from_slice(&FLAG_FENCE.to_le_bytes());
            header[8..16].copy_from_slice(&self.u64(8).to_le_bytes());
            header[16..20].copy_from_slice(&self.u32(16).to_le_bytes());
        }
        header
    }
}
