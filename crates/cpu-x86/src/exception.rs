//! Exceptions as instructions raise them, before delivery (APM volume 2, chapter 8).

/// Vector numbers of the architecture's exceptions.
#[allow(missing_docs)]
pub(crate) mod vector {
    pub(crate) const DE: u8 = 0;
    pub(crate) const DB: u8 = 1;
    pub(crate) const NMI: u8 = 2;
    pub(crate) const BP: u8 = 3;
    pub(crate) const OF: u8 = 4;
    pub(crate) const BR: u8 = 5;
    pub(crate) const UD: u8 = 6;
    pub(crate) const NM: u8 = 7;
    pub(crate) const DF: u8 = 8;
    pub(crate) const TS: u8 = 10;
    pub(crate) const NP: u8 = 11;
    pub(crate) const SS: u8 = 12;
    pub(crate) const GP: u8 = 13;
    pub(crate) const PF: u8 = 14;
    pub(crate) const MF: u8 = 16;
    pub(crate) const AC: u8 = 17;
    pub(crate) const MC: u8 = 18;
    pub(crate) const XF: u8 = 19;
    pub(crate) const SX: u8 = 30;
}

/// An exception that an instruction raised. For a page fault, CR2 is set when it is raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exception {
    /// The vector, 0 to 31.
    pub(crate) vector: u8,
    /// The error code that is pushed, for the vectors that have one.
    pub(crate) error_code: Option<u16>,
}

/// What an instruction's handler returns: nothing, or the exception it raised. A handler that raises
/// has changed no architectural state except what the architecture says it has.
pub(crate) type Result<T = ()> = std::result::Result<T, Exception>;

impl Exception {
    /// An exception without an error code.
    pub(crate) const fn plain(vector: u8) -> Self {
        Self { vector, error_code: None }
    }

    /// An exception with an error code.
    pub(crate) const fn with_code(vector: u8, error_code: u16) -> Self {
        Self { vector, error_code: Some(error_code) }
    }

    /// Not an exception: the instruction waits, and is tried again after interrupts had their turn.
    pub(crate) const RETRY: Self = Self::plain(0xff);
    /// Not an exception: the running guest is left for its host (see `svm`).
    pub(crate) const EXIT: Self = Self::plain(0xfe);
    /// Not an exception: the instruction would have reached a device while what it does is recorded.
    pub(crate) const UNTRIED: Self = Self::plain(0xfd);
    /// Not an exception: the engines came to different results (see `translate::check`).
    pub(crate) const DIVERGED: Self = Self::plain(0xfc);
    /// #UD
    pub(crate) const UD: Self = Self::plain(vector::UD);
    /// #NM
    pub(crate) const NM: Self = Self::plain(vector::NM);
    /// #DE
    pub(crate) const DE: Self = Self::plain(vector::DE);
    /// #GP(0)
    pub(crate) const GP0: Self = Self::with_code(vector::GP, 0);
    /// #SS(0)
    pub(crate) const SS0: Self = Self::with_code(vector::SS, 0);
}
