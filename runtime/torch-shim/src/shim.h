// The C interface between torch-shim's Rust code (src/ffi.rs) and libtorch.
//
// Rules: every function that can fail returns 0 on success and 1 with *error filled; no C++ exception crosses; strings are
// UTF-8, NUL-terminated and freed with shim_string_free; a handle is freed by its own shim_*_free and by nothing else; on failure
// nothing is left behind.
// Tensors cross as `at::Tensor *`, which tch calls C_tensor, and are then owned by tch.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

// What was thrown; what it means is decided by src/classify.rs, which has the same list.
enum ShimThrown : int32_t {
  SHIM_THROWN_UNKNOWN = 0,
  SHIM_THROWN_STD = 1,            // std::exception: most of what surfaces in the interpreter
  SHIM_THROWN_C10 = 2,            // c10::Error
  SHIM_THROWN_RAISED = 3,         // torch::jit::JITException: a `raise` or `assert` of the model
  SHIM_THROWN_OUT_OF_MEMORY = 4,  // c10::OutOfMemoryError, std::bad_alloc
  SHIM_THROWN_ACCELERATOR = 5,    // c10::AcceleratorError
  SHIM_THROWN_SCHEMA = 6,         // arguments that do not fit the method's schema, before anything ran
};

struct ShimError {
  int32_t thrown;
  char *message;  // null when there was no memory for it
};

struct ShimBytes {
  const uint8_t *data;
  size_t size;
};

// What an argument or output is; src/value.rs has the same list.
enum ShimTag : int32_t {
  SHIM_DEFAULT = 0,  // argument left out: the schema's default
  SHIM_NONE = 1,
  SHIM_TENSOR = 2,
  SHIM_INT = 3,
  SHIM_DOUBLE = 4,
  SHIM_BOOL = 5,
  SHIM_STRING = 6,
  SHIM_STRING_LIST = 7,
  SHIM_INT_LIST = 8,
  SHIM_DOUBLE_LIST = 9,
};

// One argument. Borrowed for the length of the call, but for a tensor, whose handle stays with the caller.
struct ShimArgument {
  int32_t tag;
  int64_t integer;           // SHIM_INT, SHIM_BOOL
  double number;             // SHIM_DOUBLE
  void *tensor;              // SHIM_TENSOR: at::Tensor *
  const void *items;         // lists: int64_t *, double * or ShimBytes *; SHIM_STRING: one ShimBytes
  size_t count;              // lists
};

struct ShimModule;
struct ShimConstants;
struct ShimOutputs;

void shim_string_free(char *text);

// Loads from an open file, read by position: its offset stays where it is, and it is not needed afterwards. An archive that claims
// more than it holds is refused before libtorch believes it (pickle.h).
int shim_module_load(int file, int device, ShimModule **out, ShimError *error);
void shim_module_free(ShimModule *module);
// A copy with weights and attributes of its own that shares compiled code, and with it the constants that the code captured.
int shim_module_deepcopy(const ShimModule *module, ShimModule **out, ShimError *error);
// A second handle on the same weights and attributes. Two threads may run methods without state through them at once.
int shim_module_share(const ShimModule *module, ShimModule **out, ShimError *error);
// `torch.jit.freeze` with `method` kept.
int shim_module_freeze(const ShimModule *module, const char *method, ShimModule **out, ShimError *error);
// Facts about the module and its methods, as JSON; src/schema.rs has the shape.
int shim_module_describe(const ShimModule *module, char **json, ShimError *error);
// See state.h.
int shim_module_fingerprint(const ShimModule *module, uint64_t *out, ShimError *error);
// Keeps the values of the constants that the code of `module` captured, and puts them back.
int shim_constants_keep(const ShimModule *module, ShimConstants **out, ShimError *error);
int shim_constants_restore(const ShimConstants *constants, ShimError *error);
void shim_constants_free(ShimConstants *constants);
// Runs a method in inference mode. Argument 0 is the first after `self`.
int shim_module_run(const ShimModule *module, const char *method, const ShimArgument *arguments, size_t count,
                    ShimOutputs **out, ShimError *error);

size_t shim_outputs_count(const ShimOutputs *outputs);
// Path of output `index` inside what the method returned: "" for the value itself, "1.key" inside a tuple of dicts.
const char *shim_outputs_path(const ShimOutputs *outputs, size_t index);
// SHIM_TENSOR or SHIM_STRING_LIST; numbers come as tensors of one element.
int32_t shim_outputs_tag(const ShimOutputs *outputs, size_t index);
// Gives the tensor away; the slot is empty afterwards.
void *shim_outputs_take_tensor(ShimOutputs *outputs, size_t index);
size_t shim_outputs_string_count(const ShimOutputs *outputs, size_t index);
ShimBytes shim_outputs_string(const ShimOutputs *outputs, size_t index, size_t item);
void shim_outputs_free(ShimOutputs *outputs);

// A CPU tensor over memory of the caller's. `release(context)` is called once, when the last alias is gone; also on failure.
int shim_tensor_from_blob(void *data, const int64_t *shape, size_t rank, int32_t scalar_type, void (*release)(void *),
                          void *context, void **out, ShimError *error);
// An uninitialised, contiguous CPU tensor.
int shim_tensor_empty(const int64_t *shape, size_t rank, int32_t scalar_type, void **out, ShimError *error);
// A contiguous CPU tensor of the same values in inference mode; `copy` forces memory of its own.
int shim_tensor_to_host(const void *tensor, int copy, void **out, ShimError *error);
// The same values on `device` (-1 CPU, else a CUDA index).
int shim_tensor_to_device(const void *tensor, int device, void **out, ShimError *error);
// What a strided tensor is; `shape` lives as long as the tensor.
struct ShimTensorView {
  int32_t scalar_type;
  const int64_t *shape;
  size_t rank;
  size_t size_bytes;
  void *data;
};
int shim_tensor_view(const void *tensor, ShimTensorView *out, ShimError *error);

// Gives the calling thread a CUDA stream of its own on `device`, for the rest of its life.
int shim_thread_use_stream(int device, ShimError *error);
// Waits for the calling thread's stream on CUDA device `device`. Fails with what failed there; every time, when the device is lost.
int shim_device_synchronize(int device, ShimError *error);

// Gives what a model prints to `handler`, from the thread that prints. `handler` must not throw.
void shim_print_handler_set(void (*handler)(const char *text, size_t size));

// For tests, which make their own models: builds a module from TorchScript methods and saves it. `attributes` is lines
// "name=FLOAT", each a float32 buffer of one element.
int shim_module_define(const char *source, const char *attributes, const char *path, ShimError *error);
// The same from whole classes in the words of an archive's code; see define.cpp.
int shim_classes_define(const char *source, const char *path, ShimError *error);
}
