//! Why a load ends before all of it was delivered.

use crate::error::Error;

/// The first reason counts: what follows from it does not replace it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The caller wanted it.
    Cancelled,
    /// There was no memory to go on.
    NoMemory,
    /// A state that cannot happen.
    Internal(&'static str),
}

impl Ending {
    /// What the caller is told.
    pub(super) fn error(self) -> Error {
        match self {
            Ending::Cancelled => Error::Cancelled,
            Ending::NoMemory => Error::NoMemory,
            Ending::Internal(what) => Error::Internal { what },
        }
    }
}
