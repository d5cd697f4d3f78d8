//! What a model prints, given to whoever asked for it instead of to the process's standard output.

use std::{
    ffi::c_char,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::OnceLock,
};

use crate::ffi;

static HANDLER: OnceLock<fn(&str)> = OnceLock::new();

/// Gives to `handler` whatever a model prints from now on, with its newlines, on the thread that prints. The first handler stays
/// for the life of the process: later calls change nothing.
pub fn set_print_handler(handler: fn(&str)) {
    if HANDLER.set(handler).is_ok() {
        // SAFETY: `printed` keeps no pointer and does not unwind.
        unsafe { ffi::shim_print_handler_set(printed) }
    }
}

extern "C" fn printed(text: *const c_char, size: usize) {
    let Some(handler) = HANDLER.get() else { return };
    if size == 0 {
        return;
    }
    // SAFETY: the shim gives `size` bytes that live for the call.
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), size) };
    // A panic must not reach libtorch; the panic hook has told of it.
    drop(catch_unwind(AssertUnwindSafe(|| handler(&String::from_utf8_lossy(bytes)))));
}
