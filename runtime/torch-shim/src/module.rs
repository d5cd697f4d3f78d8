//! A TorchScript module: load, describe, copy, freeze, run.

use std::{
    ffi::{CStr, CString},
    os::unix::ffi::OsStrExt as _,
    path::Path,
    ptr,
};

use tch::Device;

use crate::{
    Argument, ModuleFacts, Output, TorchError, check, device_index,
    ffi::{self, ShimModule},
    value::{ArgumentViews, take_outputs},
};

/// A loaded TorchScript module in evaluation mode.
///
/// Owned by one thread at a time: it may move to another thread, but two never call it at once.
#[derive(Debug)]
pub struct Module {
    handle: *mut ShimModule,
}

// SAFETY: the handle owns a torch::jit::Module, which is not bound to the thread that made it; `Module` is not `Sync`, so no
// two threads reach it at once.
unsafe impl Send for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: the handle came from the shim and is freed once, here.
        unsafe { ffi::shim_module_free(self.handle) }
    }
}

impl Module {
    /// Loads the archive at `path` with its weights on `device`.
    ///
    /// Errors: `Archive`, `Operator` or `Version` for a file that is not usable, `OutOfMemory`, `Device`.
    pub fn load(path: &Path, device: Device) -> Result<Self, TorchError> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: path is NUL-terminated and outlives the call.
        unsafe { Self::made(|out, error| ffi::shim_module_load(path.as_ptr(), device_index(device), out, error)) }
    }

    /// A copy with weights and attributes of its own that shares compiled code, so that what warms one warms both.
    pub fn deep_copy(&self) -> Result<Self, TorchError> {
        // SAFETY: the handle is alive as long as `self`.
        unsafe { Self::made(|out, error| ffi::shim_module_deepcopy(self.handle, out, error)) }
    }

    /// A second handle on the same weights, for another thread: libtorch runs a module without state on many threads at once.
    ///
    /// Errors: `Argument` when any method may write to the module's attributes.
    pub fn share(&self) -> Result<Self, TorchError> {
        if let Some(method) = self.describe()?.methods.iter().find(|method| method.is_stateful) {
            let text =
                format!("method '{}' writes to the module's attributes, so the module cannot be shared", method.name);
            return Err(TorchError::argument(text));
        }
        // SAFETY: the handle is alive as long as `self`. Both handles reach the same weights, which nothing writes to, as just
        // checked; running a method reads them alone.
        unsafe { Self::made(|out, error| ffi::shim_module_share(self.handle, out, error)) }
    }

    /// The module with its weights folded into `method`'s graph (`torch.jit.freeze`).
    pub fn freeze(&self, method: &str) -> Result<Self, TorchError> {
        let method = CString::new(method)?;
        // SAFETY: handle and name are alive for the call.
        unsafe { Self::made(|out, error| ffi::shim_module_freeze(self.handle, method.as_ptr(), out, error)) }
    }

    /// Static facts: methods, sizes, devices, what is written to.
    pub fn describe(&self) -> Result<ModuleFacts, TorchError> {
        let mut json = ptr::null_mut();
        // SAFETY: the handle is alive; the shim sets `json` to a string of ours to free when it returns 0.
        let text = unsafe {
            check(|error| ffi::shim_module_describe(self.handle, &raw mut json, error))?;
            let text = CStr::from_ptr(json).to_string_lossy().into_owned();
            ffi::shim_string_free(json);
            text
        };
        serde_json::from_str(&text)
            .map_err(|error| TorchError::argument(format!("reading the module's facts: {error}")))
    }

    /// Calls `method` with positional `arguments` (without `self`; fewer are not filled up: use [`Argument::Default`]) in
    /// inference mode and returns the leaves of what it returned, in order.
    ///
    /// Errors: `Argument` when they do not fit the schema, `Raised` when the model raised, `OutOfMemory`, `Device`, `Torch`.
    pub fn run(&mut self, method: &str, arguments: &[Argument]) -> Result<Vec<Output>, TorchError> {
        let method = CString::new(method)?;
        let views = ArgumentViews::new(arguments);
        let mut outputs = ptr::null_mut();
        // SAFETY: handle, name and views are alive for the call; on success the shim gives us the outputs handle.
        unsafe {
            check(|error| {
                let arguments = views.arguments.as_ptr();
                let count = views.arguments.len();
                ffi::shim_module_run(self.handle, method.as_ptr(), arguments, count, &raw mut outputs, error)
            })?;
            Ok(take_outputs(outputs))
        }
    }

    /// Runs a shim function that makes a module.
    ///
    /// # Safety
    /// `make` must fill its first argument with a module handle when it returns 0.
    unsafe fn made(make: impl FnOnce(*mut *mut ShimModule, *mut ffi::ShimError) -> i32) -> Result<Self, TorchError> {
        let mut handle = ptr::null_mut();
        // SAFETY: as the caller promises.
        unsafe { check(|error| make(&raw mut handle, error))? };
        Ok(Self { handle })
    }
}

/// Builds a module from TorchScript `source` (methods with `self`) and saves it at `path`; `buffers` become tensor attributes of
/// one FP32 element. For tests, which make their own models so.
pub fn define_module(source: &str, buffers: &[(&str, f32)], path: &Path) -> Result<(), TorchError> {
    let source = CString::new(source)?;
    let lines: Vec<String> = buffers.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let lines = CString::new(lines.join("\n"))?;
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: three NUL-terminated strings that outlive the call.
    unsafe { check(|error| ffi::shim_module_define(source.as_ptr(), lines.as_ptr(), path.as_ptr(), error)) }
}
