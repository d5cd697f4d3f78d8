//! A TorchScript module: load, describe, copy, freeze, run.

use std::{
    ffi::{CStr, CString},
    fs::File,
    os::fd::AsRawFd as _,
    path::Path,
    ptr,
};

use tch::Device;

use crate::{
    Argument, ModuleFacts, Output, TorchError, TorchErrorKind, check,
    classify::load_kind_of,
    device_index,
    error::call_with_slot,
    ffi::{self, ShimConstants, ShimModule},
    value::{ArgumentViews, take_outputs},
};

/// A loaded TorchScript module in evaluation mode.
///
/// Owned by one thread at a time: it may move to another thread, but two never call it at once.
#[derive(Debug)]
pub struct Module {
    handle: *mut ShimModule,
    /// The method that this handle may run, when another handle reaches the same weights.
    only_method: Option<String>,
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
    /// Loads the archive at `path` with its weights on `device`. Errors: as [`Self::load_from`].
    pub fn load(path: &Path, device: Device) -> Result<Self, TorchError> {
        let file = File::open(path).map_err(|error| TorchError {
            kind: TorchErrorKind::Archive,
            message: format!("opening {}: {error}", path.display()),
        })?;
        Self::load_from(&file, device)
    }

    /// Loads the archive that `file` holds with its weights on `device`: what was verified through this very descriptor is what
    /// is loaded, whatever became of its path. The file's offset is neither used nor moved.
    ///
    /// Errors: `Archive`, `Operator` or `Version` for a file that is not usable, `OutOfMemory`, `Device`.
    pub fn load_from(file: &File, device: Device) -> Result<Self, TorchError> {
        let mut handle = ptr::null_mut();
        let file = file.as_raw_fd();
        // SAFETY: the descriptor is open for the call, which alone uses it; on success the shim gives us the handle.
        unsafe { call_with_slot(|error| ffi::shim_module_load(file, device_index(device), &raw mut handle, error)) }
            .map_err(|(thrown, message)| TorchError { kind: load_kind_of(thrown, &message), message })?;
        Ok(Self { handle, only_method: None })
    }

    /// A copy with weights and attributes of its own that shares compiled code, so that what warms one warms both; and with the
    /// code its constants, to which a method may write (`Method::writes_constants`).
    pub fn deep_copy(&self) -> Result<Self, TorchError> {
        // SAFETY: the handle is alive as long as `self`.
        unsafe { Self::made(|out, error| ffi::shim_module_deepcopy(self.handle, out, error)) }
    }

    /// A second handle on the same weights, for another thread: libtorch runs a method without state on many threads at once.
    /// Both handles run `method` alone from then on; what other methods do is no matter.
    ///
    /// Errors: `Argument` when the module has no such method or the method may write to the module.
    pub fn share(&mut self, method: &str) -> Result<Self, TorchError> {
        let facts = self.describe()?;
        let found = facts.method(method).ok_or_else(|| {
            TorchError::argument(format!("the module has no method '{method}', so it cannot be shared for it"))
        })?;
        if found.is_stateful {
            let text =
                format!("method '{method}' writes to the module, so two threads cannot run it on the same weights");
            return Err(TorchError::argument(text));
        }
        // SAFETY: the handle is alive as long as `self`. Both handles reach the same weights; the only method that they run
        // reads them and does not write to them, as just checked.
        let mut shared = unsafe { Self::made(|out, error| ffi::shim_module_share(self.handle, out, error))? };
        self.only_method = Some(method.to_owned());
        shared.only_method.clone_from(&self.only_method);
        Ok(shared)
    }

    /// The module with its weights folded into `method`'s graph (`torch.jit.freeze`).
    pub fn freeze(&self, method: &str) -> Result<Self, TorchError> {
        let name = CString::new(method)?;
        // SAFETY: handle and name are alive for the call.
        let mut frozen =
            unsafe { Self::made(|out, error| ffi::shim_module_freeze(self.handle, name.as_ptr(), out, error))? };
        // It may still reach the same memory.
        frozen.only_method.clone_from(&self.only_method);
        Ok(frozen)
    }

    /// A number that changes with any bit of the parameters, buffers and attributes (also inside lists, dicts, tuples and other
    /// objects) and of the constants that the code captured; of tensors on the CPU and on devices. Takes about the time of reading
    /// them. What does not count: random generators, objects of C++ classes.
    pub fn fingerprint(&self) -> Result<u64, TorchError> {
        let mut fingerprint = 0;
        // SAFETY: the handle is alive, and the number is ours to fill.
        unsafe { check(|error| ffi::shim_module_fingerprint(self.handle, &raw mut fingerprint, error))? };
        Ok(fingerprint)
    }

    /// Keeps what the constants of the code hold now, so that runs on a copy, which shares them, leave no trace.
    pub fn keep_constants(&self) -> Result<ConstantValues, TorchError> {
        let mut handle = ptr::null_mut();
        // SAFETY: the handle is alive; on success the shim gives us the other one.
        unsafe { check(|error| ffi::shim_constants_keep(self.handle, &raw mut handle, error))? };
        Ok(ConstantValues { handle })
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
    /// Errors: `Argument` when they do not fit the schema, `Raised` when the model raised, `Shape`, `Datatype` and `Index` when an
    /// operator refused what it was given, `OutOfMemory`, `Device`, `Torch`.
    pub fn run(&mut self, method: &str, arguments: &[Argument]) -> Result<Vec<Output>, TorchError> {
        if let Some(only) = self.only_method.as_deref().filter(|only| *only != method) {
            return Err(TorchError::argument(format!("a module that is shared for '{only}' does not run '{method}'")));
        }
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
        Ok(Self { handle, only_method: None })
    }
}

/// Values of the constants of a module's code, from [`Module::keep_constants`].
#[derive(Debug)]
pub struct ConstantValues {
    handle: *mut ShimConstants,
}

// SAFETY: the handle owns tensors, which are not bound to a thread; it is not `Sync`.
unsafe impl Send for ConstantValues {}

impl Drop for ConstantValues {
    fn drop(&mut self) {
        // SAFETY: the handle came from the shim and is freed once, here.
        unsafe { ffi::shim_constants_free(self.handle) }
    }
}

impl ConstantValues {
    /// Puts them back. No other thread may be running the module's methods.
    pub fn restore(&self) -> Result<(), TorchError> {
        // SAFETY: the handle is alive for the call.
        unsafe { check(|error| ffi::shim_constants_restore(self.handle, error)) }
    }
}
