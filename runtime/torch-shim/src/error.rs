//! What libtorch can fail with, by kind.
//!
//! Every call of the shim goes through [`check`]. Invariant: the texts carry no C++ backtrace.

use std::{
    ffi::{CStr, NulError},
    ptr,
};

use crate::ffi;

/// What kind of fault a [`TorchError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TorchErrorKind {
    /// Any other fault inside libtorch.
    Torch,
    /// An allocation on host or device failed.
    OutOfMemory,
    /// The arguments do not fit the method's schema.
    Argument,
    /// The model raised an exception of its own.
    Raised,
    /// The device is lost until the process ends.
    Device,
    /// The file is not a readable TorchScript archive.
    Archive,
    /// The archive calls an operator that is not registered.
    Operator,
    /// The archive was written by a newer PyTorch.
    Version,
}

/// A fault of libtorch or of the model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TorchError {
    /// Its kind.
    pub kind: TorchErrorKind,
    /// libtorch's own words.
    pub message: String,
}

impl TorchError {
    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self { kind: TorchErrorKind::Argument, message: message.into() }
    }
}

impl From<NulError> for TorchError {
    fn from(_: NulError) -> Self {
        Self::argument("a name or path contains a NUL byte")
    }
}

/// Calls a function of the shim with an error slot and turns its status into a [`Result`].
///
/// # Safety
/// `call` must pass the slot to exactly one shim function, whose other arguments are valid for it.
pub(crate) unsafe fn check(call: impl FnOnce(*mut ffi::ShimError) -> i32) -> Result<(), TorchError> {
    let mut error = ffi::ShimError { kind: 0, message: ptr::null_mut() };
    if call(&raw mut error) == 0 {
        return Ok(());
    }
    let message = if error.message.is_null() {
        "libtorch failed without a message".to_owned()
    } else {
        // SAFETY: a non-null message is a NUL-terminated string that the shim allocated and gave to us.
        unsafe {
            let message = CStr::from_ptr(error.message).to_string_lossy().trim().to_owned();
            ffi::shim_string_free(error.message);
            message
        }
    };
    let kind = match error.kind {
        1 => TorchErrorKind::OutOfMemory,
        2 => TorchErrorKind::Argument,
        3 => TorchErrorKind::Raised,
        4 => TorchErrorKind::Device,
        5 => TorchErrorKind::Archive,
        6 => TorchErrorKind::Operator,
        7 => TorchErrorKind::Version,
        _ => TorchErrorKind::Torch,
    };
    Err(TorchError { kind, message })
}
