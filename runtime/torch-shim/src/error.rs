//! What libtorch can fail with, by kind.
//!
//! Every call of the shim goes through [`check`]. Invariant: the texts carry no C++ backtrace.

use std::{
    ffi::{CStr, NulError},
    ptr,
};

use crate::{
    classify::{Thrown, TorchErrorKind, kind_of, sentence},
    ffi,
};

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
    /// The sentence that says what was wrong, without the interpreter's traceback before it and the advice behind it.
    #[must_use]
    pub fn sentence(&self) -> &str {
        sentence(&self.message)
    }

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
    // SAFETY: as the caller promises.
    unsafe { call_with_slot(call) }.map_err(|(thrown, message)| TorchError { kind: kind_of(thrown, &message), message })
}

/// [`check`] without the kind, for functions whose faults mean something else.
///
/// # Safety
/// As for [`check`].
pub(crate) unsafe fn call_with_slot(call: impl FnOnce(*mut ffi::ShimError) -> i32) -> Result<(), (Thrown, String)> {
    let mut error = ffi::ShimError { thrown: 0, message: ptr::null_mut() };
    if call(&raw mut error) == 0 {
        return Ok(());
    }
    if error.message.is_null() {
        return Err((Thrown::OutOfMemory, "the host has no memory left".to_owned()));
    }
    // SAFETY: a non-null message is a NUL-terminated string that the shim allocated and gave to us.
    let message = unsafe {
        let message = CStr::from_ptr(error.message).to_string_lossy().trim().to_owned();
        ffi::shim_string_free(error.message);
        message
    };
    Err((Thrown::from_number(error.thrown), message))
}
