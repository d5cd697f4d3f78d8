// The C interface between torch-shim's Rust code (src/ffi.rs) and libtorch.
//
// Rules: every function that can fail returns 0 on success and 1 with *error filled; no C++ exception crosses; strings are
// UTF-8, NUL-terminated and freed with shim_string_free; a handle is freed by its own shim_*_free and by nothing else.
// Tensors cross as `at::Tensor *`, which tch calls C_tensor, and are then owned by tch.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

// What kind of fault an error is; src/error.rs has the same list.
enum ShimErrorKind : int32_t {
  SHIM_ERROR_TORCH = 0,          // anything else
  SHIM_ERROR_OUT_OF_MEMORY = 1,  // an allocation on host or device failed
  SHIM_ERROR_ARGUMENT = 2,       // the arguments do not fit the method's schema
  SHIM_ERROR_RAISED = 3,         // the model raised an exception of its own
  SHIM_ERROR_DEVICE = 4,         // the device is lost until the process ends
  SHIM_ERROR_ARCHIVE = 5,        // the file is not a readable TorchScript archive
  SHIM_ERROR_OPERATOR = 6,       // the archive calls an operator that is not registered
  SHIM_ERROR_VERSION = 7,        // the archive was written by a newer PyTorch
};

struct ShimError {
  int32_t kind;
  char *message;
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
struct ShimOutputs;

void shim_string_free(char *text);

int shim_module_load(const char *path, int device, ShimModule **out, ShimError *error);
void shim_module_free(ShimModule *module);
// A copy with weights and attributes of its own that shares compiled code.
int shim_module_deepcopy(const ShimModule *module, ShimModule **out, ShimError *error);
// A second handle on the same weights and attributes. Only for modules without state: two threads may then run them at once.
int shim_module_share(const ShimModule *module, ShimModule **out, ShimError *error);
// `torch.jit.freeze` with `method` kept.
int shim_module_freeze(const ShimModule *module, const char *method, ShimModule **out, ShimError *error);
// Facts about the module and its methods, as JSON; src/schema.rs has the shape.
int shim_module_describe(const ShimModule *module, char **json, ShimError *error);
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
int32_t shim_tensor_scalar_type(const void *tensor);
size_t shim_tensor_rank(const void *tensor);
const int64_t *shim_tensor_shape(const void *tensor);
size_t shim_tensor_size_bytes(const void *tensor);
void *shim_tensor_data(const void *tensor);

// Gives the calling thread a CUDA stream of its own on `device`, for the rest of its life.
int shim_thread_use_stream(int device, ShimError *error);

// Builds a module from TorchScript source and saves it: tests make their own models so. `attributes` is JSON-free text of
// lines "name=FLOAT", each a float32 tensor attribute of one element.
int shim_module_define(const char *source, const char *attributes, const char *path, ShimError *error);
}
