//! Declarations of `shim.h`, line by line. Nothing outside this crate sees them.

use std::ffi::{c_char, c_int, c_void};

#[repr(C)]
pub struct ShimError {
    pub thrown: i32,
    pub message: *mut c_char,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ShimBytes {
    pub data: *const u8,
    pub size: usize,
}

#[repr(C)]
pub struct ShimArgument {
    pub tag: i32,
    pub integer: i64,
    pub number: f64,
    pub tensor: *mut c_void,
    pub items: *const c_void,
    pub count: usize,
}

#[repr(C)]
pub struct ShimModule {
    opaque: [u8; 0],
}

#[repr(C)]
pub struct ShimConstants {
    opaque: [u8; 0],
}

#[repr(C)]
pub struct ShimOutputs {
    opaque: [u8; 0],
}

#[repr(C)]
pub struct ShimTensorView {
    pub scalar_type: i32,
    pub shape: *const i64,
    pub rank: usize,
    pub size_bytes: usize,
    pub data: *mut c_void,
}

pub const DEFAULT: i32 = 0;
pub const NONE: i32 = 1;
pub const TENSOR: i32 = 2;
pub const INT: i32 = 3;
pub const DOUBLE: i32 = 4;
pub const BOOL: i32 = 5;
pub const STRING: i32 = 6;
pub const STRING_LIST: i32 = 7;
pub const INT_LIST: i32 = 8;
pub const DOUBLE_LIST: i32 = 9;

unsafe extern "C" {
    pub fn _exit(code: c_int) -> !;

    pub fn malloc_trim(pad: usize) -> c_int;

    pub fn shim_string_free(text: *mut c_char);

    pub fn shim_module_load(file: c_int, device: c_int, out: *mut *mut ShimModule, error: *mut ShimError) -> c_int;
    pub fn shim_module_free(module: *mut ShimModule);
    pub fn shim_module_deepcopy(module: *const ShimModule, out: *mut *mut ShimModule, error: *mut ShimError) -> c_int;
    pub fn shim_module_share(module: *const ShimModule, out: *mut *mut ShimModule, error: *mut ShimError) -> c_int;
    pub fn shim_module_freeze(
        module: *const ShimModule,
        method: *const c_char,
        out: *mut *mut ShimModule,
        error: *mut ShimError,
    ) -> c_int;
    pub fn shim_module_describe(module: *const ShimModule, json: *mut *mut c_char, error: *mut ShimError) -> c_int;
    pub fn shim_module_fingerprint(module: *const ShimModule, out: *mut u64, error: *mut ShimError) -> c_int;
    pub fn shim_constants_keep(module: *const ShimModule, out: *mut *mut ShimConstants, error: *mut ShimError)
    -> c_int;
    pub fn shim_constants_restore(constants: *const ShimConstants, error: *mut ShimError) -> c_int;
    pub fn shim_constants_free(constants: *mut ShimConstants);
    pub fn shim_module_run(
        module: *const ShimModule,
        method: *const c_char,
        arguments: *const ShimArgument,
        count: usize,
        out: *mut *mut ShimOutputs,
        error: *mut ShimError,
    ) -> c_int;

    pub fn shim_outputs_count(outputs: *const ShimOutputs) -> usize;
    pub fn shim_outputs_path(outputs: *const ShimOutputs, index: usize) -> *const c_char;
    pub fn shim_outputs_tag(outputs: *const ShimOutputs, index: usize) -> i32;
    pub fn shim_outputs_take_tensor(outputs: *mut ShimOutputs, index: usize) -> *mut c_void;
    pub fn shim_outputs_string_count(outputs: *const ShimOutputs, index: usize) -> usize;
    pub fn shim_outputs_string(outputs: *const ShimOutputs, index: usize, item: usize) -> ShimBytes;
    pub fn shim_outputs_free(outputs: *mut ShimOutputs);

    pub fn shim_tensor_from_blob(
        data: *mut c_void,
        shape: *const i64,
        rank: usize,
        scalar_type: i32,
        release: extern "C" fn(*mut c_void),
        context: *mut c_void,
        out: *mut *mut c_void,
        error: *mut ShimError,
    ) -> c_int;
    pub fn shim_tensor_empty(
        shape: *const i64,
        rank: usize,
        scalar_type: i32,
        out: *mut *mut c_void,
        error: *mut ShimError,
    ) -> c_int;
    pub fn shim_tensor_to_host(
        tensor: *const c_void,
        copy: c_int,
        out: *mut *mut c_void,
        error: *mut ShimError,
    ) -> c_int;
    pub fn shim_tensor_to_device(
        tensor: *const c_void,
        device: c_int,
        out: *mut *mut c_void,
        error: *mut ShimError,
    ) -> c_int;
    pub fn shim_tensor_view(tensor: *const c_void, out: *mut ShimTensorView, error: *mut ShimError) -> c_int;

    pub fn shim_thread_use_stream(device: c_int, error: *mut ShimError) -> c_int;
    pub fn shim_device_synchronize(device: c_int, error: *mut ShimError) -> c_int;
    pub fn shim_print_handler_set(handler: extern "C" fn(*const c_char, usize));

    pub fn shim_module_define(
        source: *const c_char,
        attributes: *const c_char,
        path: *const c_char,
        error: *mut ShimError,
    ) -> c_int;
    pub fn shim_classes_define(source: *const c_char, path: *const c_char, error: *mut ShimError) -> c_int;
}
