//! CUDA, brought in at run time: one binary serves CPU and GPU.
//!
//! `libtorch_cuda.so` registers its kernels when it is loaded, so it must be loaded before the first tensor is made.

use std::{error::Error as _, path::Path};

/// Loads `libtorch_cuda.so` from `folder`, or from where the system looks when that is `None`, and keeps it for the rest of the
/// process. Call it before any other function of libtorch. Errors: the dynamic loader's
/// text.
pub fn load_cuda(folder: Option<&Path>) -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    let name = "libtorch_cuda.so";
    let path = folder.map_or_else(|| name.to_owned(), |folder| folder.join(name).display().to_string());
    // SAFETY: the library's initialisers register kernels with libtorch and do nothing else; it is libtorch's own, of the
    // version that this crate was built against.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }
        .map_err(|error| error.source().map_or_else(|| error.to_string(), ToString::to_string))?;
    // Registered kernels point into it.
    std::mem::forget(library);
    Ok(())
}
