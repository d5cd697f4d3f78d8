//! Modules from TorchScript source, for tests, which make their own models.

use std::{ffi::CString, os::unix::ffi::OsStrExt as _, path::Path};

use crate::{TorchError, check, ffi};

/// Builds a module from TorchScript `source` (methods with `self`) and saves it at `path`; `buffers` become tensor attributes of
/// one FP32 element.
pub fn define_module(source: &str, buffers: &[(&str, f32)], path: &Path) -> Result<(), TorchError> {
    let source = CString::new(source)?;
    let lines: Vec<String> = buffers.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let lines = CString::new(lines.join("\n"))?;
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: three NUL-terminated strings that outlive the call.
    unsafe { check(|error| ffi::shim_module_define(source.as_ptr(), lines.as_ptr(), path.as_ptr(), error)) }
}

/// Builds an object of class `__torch__.Model` from `source`, whole classes in the words of an archive's code, and saves it at
/// `path`.
///
/// Attributes are filled by their types: a tensor is `[1.0]`, a number 0, a list or dict has one such element (under `"k"` or 0),
/// and one of interface type `__torch__.I` is an object of class `__torch__.IImpl`. `CONSTANTS.c0` in the code is a captured tensor
/// `[1.0]`.
pub fn define_classes(source: &str, path: &Path) -> Result<(), TorchError> {
    let source = CString::new(source)?;
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: two NUL-terminated strings that outlive the call.
    unsafe { check(|error| ffi::shim_classes_define(source.as_ptr(), path.as_ptr(), error)) }
}
