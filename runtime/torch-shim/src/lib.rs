//! The part of libtorch that tch does not bind, behind a safe API: method schemas and other static facts, calls with every
//! kind of argument and result, tensors over memory that Rust owns.
//!
//! The only crate of the workspace with `unsafe` and C++ (`shim.h` is their border). Used by the runtime's torch engine and by
//! tests that make models. Invariants: every fallible call returns [`Result`]; no C++ exception crosses; memory given to
//! libtorch lives until its last alias is gone.

mod classify;
mod cuda;
mod define;
mod error;
mod ffi;
mod module;
mod print;
mod schema;
mod tensor;
mod value;

pub use classify::TorchErrorKind;
pub use cuda::load_cuda;
pub use define::{define_classes, define_module};
pub use error::TorchError;
pub use module::{ConstantValues, Module};
pub use print::set_print_handler;
pub use schema::{ArgumentSchema, Method, ModuleFacts, Sizes, Type};
pub use tensor::{HostTensor, ScalarType, TensorBuffer, tensor_from_bytes, tensor_to_device, tensor_to_host};
pub use value::{Argument, Output, OutputValue};

use self::error::check;

/// Gives the calling thread a CUDA stream of its own on `device`, so that instances on one device overlap.
pub fn use_own_stream(device: tch::Device) -> Result<(), TorchError> {
    let index = device_index(device);
    // SAFETY: the function takes no pointer but the error slot, which `check` provides.
    unsafe { check(|error| ffi::shim_thread_use_stream(index, error)) }
}

/// Whether a CUDA `device` is lost until the process ends; ask it after whatever failed there. A CPU never is.
///
/// An error that the device holds against every later call comes back twice; one that a single kernel left behind is taken away
/// by the first question.
#[must_use]
pub fn is_device_lost(device: tch::Device) -> bool {
    // SAFETY: the function takes no pointer but the error slot, which `check` provides.
    let is_failing = || unsafe { check(|error| ffi::shim_device_synchronize(device_index(device), error)) }.is_err();
    device.is_cuda() && is_failing() && is_failing()
}

/// Ends the process at once, without the destructors of libtorch's globals: a thread may still be inside it.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` takes any code, touches no memory of ours and does not return.
    unsafe { ffi::_exit(code) }
}

/// Gives memory that was freed back to the system. glibc keeps what threads other than the first have freed, and a model's weights
/// are large; takes milliseconds, in which allocations of other threads may wait.
pub fn release_free_memory() {
    // SAFETY: `malloc_trim` takes any number, touches free memory alone and takes the allocator's own locks.
    unsafe { ffi::malloc_trim(0) };
}

/// libtorch's number of a device in the shim: -1 for the CPU, else the CUDA index.
fn device_index(device: tch::Device) -> i32 {
    match device {
        tch::Device::Cuda(index) => i32::try_from(index).unwrap_or(i32::MAX),
        _ => -1,
    }
}
