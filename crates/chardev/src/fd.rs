//! Descriptors that another process passed by number (`fd=N`).
//!
//! The number is duplicated rather than adopted: were the same number given twice, two owners would
//! close it twice. The original stays open until the process ends, closed on exec.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

use crate::ChardevError;

/// A duplicate of the descriptor with this number.
pub(crate) fn duplicate(fd: RawFd) -> Result<OwnedFd, ChardevError> {
    let refuse = |problem: &str| ChardevError::Fd { fd, problem: problem.to_owned() };
    if fd < 0 {
        return Err(refuse("is no descriptor number"));
    }
    // SAFETY: the number isn't -1. It is used for two system calls only, both of which answer EBADF when
    // it isn't open; what they return is a new descriptor that nobody else owns.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let explain = |errno: Errno| match errno {
        Errno::BADF => refuse("is not open in this process"),
        other => refuse(&crate::error::reason(&other.into())),
    };
    fcntl_setfd(borrowed, FdFlags::CLOEXEC).map_err(explain)?;
    fcntl_dupfd_cloexec(borrowed, 3).map_err(explain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_not_open_is_an_error() {
        let error = duplicate(987_654).unwrap_err().to_string();
        assert_eq!(error, "File descriptor '987654' is not open in this process");
        assert!(duplicate(-1).is_err());
    }
}
