//! What a fault of libtorch means, from the type of the exception and its text: a pure function and its closed lists.
//!
//! libtorch rethrows most of what an operator throws as a plain exception behind a traceback, so that the text is all there is.
//! Invariant: only the beginning of the sentence that libtorch itself wrote decides, never words of a request that it quotes; and
//! a text never proves that a device is lost (see [`crate::is_device_lost`]).

/// What kind of fault a [`crate::TorchError`] is.
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
    /// An operator refused the shape of a tensor.
    Shape,
    /// An operator refused the element type of a tensor.
    Datatype,
    /// An index, a key or a position lies outside of what it indexes.
    Index,
    /// The device or a library on it failed; whether the device is lost, it must say itself.
    Device,
    /// The file is not a readable TorchScript archive.
    Archive,
    /// The archive calls an operator that is not registered.
    Operator,
    /// The archive was written by a newer PyTorch.
    Version,
}

use TorchErrorKind::{Datatype, Index, Shape};

/// The type of a C++ exception, as `shim.h` numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thrown {
    /// Not a `std::exception`.
    Unknown,
    /// `std::exception`.
    Std,
    /// `c10::Error`.
    C10,
    /// `torch::jit::JITException`.
    Raised,
    /// `c10::OutOfMemoryError`, `std::bad_alloc`.
    OutOfMemory,
    /// `c10::AcceleratorError`.
    Accelerator,
    /// Whatever was thrown before the method ran.
    Schema,
}

impl Thrown {
    pub fn from_number(number: i32) -> Self {
        match number {
            1 => Self::Std,
            2 => Self::C10,
            3 => Self::Raised,
            4 => Self::OutOfMemory,
            5 => Self::Accelerator,
            6 => Self::Schema,
            _ => Self::Unknown,
        }
    }
}

/// What a fault of a call means.
pub fn kind_of(thrown: Thrown, message: &str) -> TorchErrorKind {
    let cause = cause(message);
    match thrown {
        Thrown::OutOfMemory => TorchErrorKind::OutOfMemory,
        Thrown::Schema => TorchErrorKind::Argument,
        _ if is_out_of_memory(cause) => TorchErrorKind::OutOfMemory,
        Thrown::Accelerator => TorchErrorKind::Device,
        _ if is_of_device(cause) => TorchErrorKind::Device,
        Thrown::Raised => TorchErrorKind::Raised,
        Thrown::Unknown | Thrown::Std | Thrown::C10 => refused(cause).unwrap_or(TorchErrorKind::Torch),
    }
}

/// What a fault while loading an archive means.
pub fn load_kind_of(thrown: Thrown, message: &str) -> TorchErrorKind {
    let says = |part: &str| message.contains(part);
    if says("Unknown builtin op") || says("Couldn't find an operator") {
        TorchErrorKind::Operator
    } else if says("maximum supported version for reading") {
        TorchErrorKind::Version
    } else {
        match kind_of(thrown, message) {
            kind @ (TorchErrorKind::OutOfMemory | TorchErrorKind::Device) => kind,
            _ => TorchErrorKind::Archive,
        }
    }
}

/// What stands behind the interpreter's traceback.
fn cause(message: &str) -> &str {
    const TRACEBACK: &str = "The following operation failed in the TorchScript interpreter.";
    const CAUSE: &str = "RuntimeError: ";
    if message.starts_with(TRACEBACK)
        && let Some(at) = message.find(&format!("\n{CAUSE}"))
    {
        return message.get(at + 1 + CAUSE.len()..).unwrap_or(message);
    }
    message.strip_prefix(CAUSE).unwrap_or(message)
}

/// The first line of the cause: further ones are advice to developers.
pub fn sentence(message: &str) -> &str {
    cause(message).lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or(message)
}

/// Beginnings of what CUDA's libraries say.
const DEVICE: [&str; 9] = [
    "CUDA error: ",
    "CUDA driver error: ",
    "CUDA kernel errors might be",
    "cuDNN error: ",
    "cuDNN Frontend error: ",
    "cuFFT error: ",
    "cusolver error: ",
    "cuSPARSE error: ",
    "NCCL error",
];

fn is_of_device(cause: &str) -> bool {
    DEVICE.iter().any(|start| cause.starts_with(start)) || cause.starts_with("Compile with `TORCH_USE_CUDA_DSA`")
}

fn is_out_of_memory(cause: &str) -> bool {
    let first = cause.lines().next().unwrap_or_default();
    let allocates = ["ALLOC_FAILED", "ALLOCATION_FAILED", "error: out of memory"];
    ["CUDA out of memory", "[enforce fail at alloc_cpu", "DefaultCPUAllocator", "std::bad_alloc"]
        .iter()
        .any(|start| cause.starts_with(start))
        || is_of_device(cause) && allocates.iter().any(|part| first.contains(part))
}

/// What operators say of inputs that they refuse: the kind, and pieces of the sentence in order, of which the first begins it.
/// `tests/refused.rs` makes libtorch say each of them.
const REFUSED: &[(TorchErrorKind, &[&str])] = &[
    (Shape, &["mat1 and mat2 shapes cannot be multiplied ("]),
    (Shape, &["self must be a matrix"]),
    (Shape, &["mat2 must be a matrix"]),
    (Shape, &["size mismatch, got input ("]),
    (Shape, &["inconsistent tensor size, expected tensor ["]),
    (Shape, &["1D tensors expected, but got "]),
    (Shape, &["batch1 must be a 3D tensor"]),
    (Shape, &["batch2 must be a 3D tensor"]),
    (Shape, &["Expected size for first two dimensions of batch2 tensor to be: ["]),
    (Shape, &["The size of tensor a (", ") must match the size of tensor b ("]),
    (Shape, &["output with shape [", "] doesn't match the broadcast shape ["]),
    (Shape, &["The expanded size of the tensor (", ") must match the existing size ("]),
    (Shape, &["expand(", "the number of sizes provided ("]),
    (Shape, &["shape '[", "]' is invalid for input of size "]),
    (Shape, &["cannot reshape tensor of 0 elements into shape "]),
    (Shape, &["Dimension out of range (expected to be in range of ["]),
    (Shape, &["permute", "number of dimensions in the tensor input does not match"]),
    (Shape, &["t() expects a tensor with <= 2 dimensions, but self is "]),
    (Shape, &["Sizes of tensors must match except in dimension "]),
    (Shape, &["Tensors must have same number of dimensions: got "]),
    (Shape, &["stack expects each tensor to be equal size, but got ["]),
    (Shape, &["stack expects a non-empty TensorList"]),
    (Shape, &["torch.cat(): expected a non-empty list of Tensors"]),
    (Shape, &["start (", ") exceeds dimension size ("]),
    (Shape, &["split_with_sizes expects split_sizes to sum exactly to "]),
    (Shape, &["unflatten: Provided sizes ["]),
    (Shape, &["maximum size for tensor at dimension "]),
    (Shape, &["Expected ", " elements in a list but found "]),
    (Shape, &["Given groups=", "expected input["]),
    (Shape, &["Given transposed=", "expected input["]),
    (Shape, &["Expected ", " input to conv", ", but got input of size: ["]),
    (Shape, &["Calculated padded input size per channel: ("]),
    (Shape, &["running_mean should contain "]),
    (Shape, &["Given normalized_shape=["]),
    (Shape, &["Expected number of channels in input to be divisible by num_groups"]),
    (Shape, &["non-empty ", " tensor expected for input"]),
    (Shape, &["Given input size: (", "). Calculated output size: ("]),
    (Shape, &["It is expected ", "_size equals to ", ", but got size "]),
    (Shape, &["Padding length should be less than or equal to two times the input dimension"]),
    (Shape, &["Argument #4: Padding size should be less than the corresponding input dimension"]),
    (Shape, &["a Tensor with ", " elements cannot be converted to Scalar"]),
    (Shape, &["Boolean value of Tensor with "]),
    (Shape, &["The shape of the mask ["]),
    (Shape, &["einsum(): subscript "]),
    (Shape, &["einsum(): the number of subscripts in the equation ("]),
    (Shape, &["Index tensor must have the same number of dimensions as input tensor"]),
    (Shape, &["X1 and X2 must have the same number of columns"]),
    (Shape, &["linalg.cross: inputs dimension "]),
    (Shape, &["stft(", "expected 0 < n_fft < "]),
    (Shape, &["max(): Expected reduction dim to be specified for input.numel() == 0"]),
    (Shape, &["argmax(): Expected reduction dim to be specified for input.numel() == 0"]),
    (Index, &["index out of range in self"]),
    (Index, &["select(): index ", " out of range for tensor of size ["]),
    (Index, &["index ", " is out of bounds for dimension "]),
    (Index, &["out of range: tried to access index "]),
    (Index, &["Class values must be smaller than num_classes"]),
    (Index, &["Class values must be non-negative"]),
    (Index, &["list index out of range"]),
    (Index, &["KeyError:"]),
    (Index, &["basic_string::at: __n (which is "]),
    (Datatype, &["expected m1 and m2 to have the same dtype, but got: "]),
    (Datatype, &["expected scalar type ", " but found "]),
    (Datatype, &["dot : expected both vectors to have same dtype"]),
    (Datatype, &["Expected tensor for argument #", " to have one of the following scalar types: "]),
    (Datatype, &["tensors used as indices must be "]),
    (Datatype, &["mixed dtype (CPU): all inputs must share same datatype"]),
    (Datatype, &["\"", "\" not implemented for '"]),
    (Datatype, &["mean(): could not infer output dtype"]),
    (Datatype, &["std and var only support floating point and complex dtypes"]),
    (Datatype, &["result type ", " can't be cast to the desired output type "]),
    (Datatype, &["Subtraction, the `-` operator, with "]),
    (Datatype, &["Negation, the `-` operator, on a bool tensor is not supported"]),
    (Datatype, &["gather(): Expected dtype int"]),
    (Datatype, &["index_select(): Expected dtype int"]),
    (Datatype, &["masked_fill_ only supports boolean masks, but got mask with dtype "]),
    (Datatype, &["where expected condition to be a boolean tensor, but got a tensor with dtype "]),
    (Datatype, &["one_hot is only applicable to index tensor"]),
    (Datatype, &["clamp is not supported for complex types"]),
    (Datatype, &["Expected query, key, and value to have the same dtype, but got "]),
];

fn refused(cause: &str) -> Option<TorchErrorKind> {
    let is_said = |pieces: &&[&str]| {
        let mut pieces = pieces.iter();
        let rest = cause.strip_prefix(pieces.next().copied().unwrap_or_default());
        pieces.try_fold(rest?, |rest, piece| rest.split_once(piece).map(|(_, after)| after))
    };
    REFUSED.iter().find(|(_, pieces)| is_said(pieces).is_some()).map(|(kind, _)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACEBACK: &str = "The following operation failed in the TorchScript interpreter.\n\
        Traceback of TorchScript, serialized code (most recent call last):\n  \
        File \"code/__torch__.py\", line 4, in forward\n    x: Tensor) -> Tensor:\n    y = torch.relu(x)\n        \
        ~~~~~~~~~~ <--- HERE\n    return y\n";

    const ASSERT: &str = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported at \
        some other API call, so the stacktrace below might be incorrect.\nFor debugging consider passing \
        CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n";

    #[test]
    fn the_kind_follows_from_exception_and_text() {
        use TorchErrorKind::{Argument, Device, OutOfMemory, Raised, Torch};
        for (thrown, text, kind) in [
            (Thrown::Std, "CUDA out of memory. Tried to allocate 1024.00 GiB.", OutOfMemory),
            (Thrown::Std, "CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`", OutOfMemory),
            (Thrown::Std, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", OutOfMemory),
            (Thrown::Std, "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", OutOfMemory),
            (Thrown::Std, "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", OutOfMemory),
            (Thrown::Std, "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't", OutOfMemory),
            (Thrown::Std, "std::bad_alloc", OutOfMemory),
            (Thrown::Accelerator, "CUDA error: out of memory", OutOfMemory),
            (Thrown::OutOfMemory, "whatever", OutOfMemory),
            (Thrown::Accelerator, ASSERT, Device),
            (Thrown::Std, ASSERT, Device),
            (Thrown::C10, ASSERT, Device),
            (Thrown::Raised, ASSERT, Device),
            (Thrown::Raised, "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.", Device),
            (Thrown::Std, "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle", Device),
            (Thrown::Std, "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", Device),
            (Thrown::Raised, "AssertionError: x must not be negative", Raised),
            (Thrown::Raised, "builtins.ValueError: CUDA error: so says the request", Raised),
            (Thrown::Raised, "AssertionError: index out of range in self", Raised),
            (Thrown::Schema, "forward() Expected a value of type 'Tensor' for argument 'x'", Argument),
            (Thrown::Schema, "CUDA error: quoted from a request", Argument),
            (Thrown::C10, "index out of range in self", Index),
            (Thrown::Std, "KeyError: ", Index),
            (Thrown::Std, "KeyError: CUDA error: x", Index),
            (Thrown::Std, "KeyError: a\nRuntimeError: CUDA error: x", Index),
            (Thrown::Std, "The size of tensor a (3) must match the size of tensor b (4) at", Shape),
            (Thrown::Std, "The size of tensor a (3) is a prime", Torch),
            (Thrown::Std, "it said: index out of range in self", Torch),
            (Thrown::Std, "\"softmax_lastdim_kernel_impl\" not implemented for 'Long'", Datatype),
            (Thrown::Std, "division by 0", Torch),
            (Thrown::Std, "linalg.inv: The diagonal element 1 is zero", Torch),
            (Thrown::Unknown, "an exception without a text", Torch),
            (Thrown::Std, "", Torch),
        ] {
            assert_eq!(kind_of(thrown, text), kind, "{thrown:?} {text}");
            let traced = format!("{TRACEBACK}RuntimeError: {text}\n");
            assert_eq!(kind_of(thrown, &traced), kind, "{thrown:?} behind a traceback: {text}");
        }
    }

    #[test]
    fn an_archive_that_does_not_load_is_told_apart() {
        use TorchErrorKind::{Archive, Device, Operator, OutOfMemory, Version};
        for (thrown, text, kind) in [
            (Thrown::Std, "Unknown builtin op: torchvision::nms.\nCould not find any similar ops", Operator),
            (Thrown::C10, "Couldn't find an operator for x", Operator),
            (Thrown::C10, "supported version for reading, 10. Your PyTorch", Archive),
            (
                Thrown::C10,
                "the maximum supported version for reading. Your PyTorch installation may be too old.",
                Version,
            ),
            (Thrown::C10, "PytorchStreamReader failed reading zip archive: failed finding central directory", Archive),
            (Thrown::OutOfMemory, "CUDA out of memory. Tried to allocate 2.00 GiB", OutOfMemory),
            (Thrown::Accelerator, "CUDA error: no kernel image is available for execution on the device", Device),
            (Thrown::Std, "index out of range in self", Archive),
        ] {
            assert_eq!(load_kind_of(thrown, text), kind, "{text}");
        }
    }

    #[test]
    fn the_sentence_is_the_first_line_behind_the_traceback() {
        assert_eq!(sentence(ASSERT), "CUDA error: device-side assert triggered");
        assert_eq!(sentence(&format!("{TRACEBACK}RuntimeError: {ASSERT}")), "CUDA error: device-side assert triggered");
        assert_eq!(sentence("RuntimeError: index out of range in self\n"), "index out of range in self");
        assert_eq!(sentence(&format!("{TRACEBACK}RuntimeError: \n")), format!("{TRACEBACK}RuntimeError: \n"));
        assert_eq!(sentence("f() expected a Tensor\nPosition: 1"), "f() expected a Tensor");
    }
}
