//! Exceptions as instructions raise them, before delivery (APM volume 2, chapter 8).

/// Vector numbers of the architecture's exceptions.
#[allow(missing_docs)]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XF: u8 = 19;
}

/// An exception that an instruction raised. For a page fault, CR2 is set when it is raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// The vector, 0 to 31.
    pub vector: u8,
    /// The error code that is pushed, for the vectors that have one.
    pub error_code: Option<u16>,
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
