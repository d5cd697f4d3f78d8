// Loading, describing and running TorchScript, and tensors over foreign memory; see shim.h for the rules.

#include "shim.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/runtime/jit_exception.h>
#include <torch/script.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <sstream>
#include <string>
#include <vector>

#include "analysis.h"

struct ShimModule {
  torch::jit::Module module;
};

struct ShimOutput {
  std::string path;
  bool is_tensor = false;
  at::Tensor tensor;
  std::vector<std::string> strings;
};

struct ShimOutputs {
  std::vector<ShimOutput> items;
};

namespace {

char *duplicate(const std::string &text) {
  char *copy = static_cast<char *>(std::malloc(text.size() + 1));
  if (copy != nullptr) {
    std::memcpy(copy, text.data(), text.size());
    copy[text.size()] = '\0';
  }
  return copy;
}

bool contains(const std::string &text, const char *part) { return text.find(part) != std::string::npos; }

bool starts_with(const std::string &text, const char *start) { return text.rfind(start, 0) == 0; }

// libtorch rethrows most faults of an operator as std::runtime_error, so the kind has to be read from the text as well: from
// the start of its last line, behind the interpreter's traceback. A text may quote a request's data, so what it says is a hint
// and never proof (the engine asks the device itself before it calls it lost).
int32_t kind_of(const std::string &text, int32_t otherwise) {
  auto last = text.find_last_not_of(" \n");
  auto begin = last == std::string::npos ? std::string::npos : text.find_last_of('\n', last);
  std::string cause = text.substr(begin == std::string::npos ? 0 : begin + 1);
  const std::string prefix = "RuntimeError: ";
  if (starts_with(cause, prefix.c_str())) cause = cause.substr(prefix.size());
  for (const std::string &said : {cause, text}) {
    if (starts_with(said, "CUDA out of memory") || starts_with(said, "[enforce fail at alloc_cpu") ||
        starts_with(said, "DefaultCPUAllocator")) {
      return SHIM_ERROR_OUT_OF_MEMORY;
    }
    if (starts_with(said, "CUDA error: ")) return SHIM_ERROR_DEVICE;
  }
  return otherwise;
}

int fail(ShimError *error, int32_t kind, const std::string &message) {
  error->kind = kind;
  error->message = duplicate(message.substr(0, message.find("\nException raised from")));
  return 1;
}

// Runs `body` and turns whatever it throws into an error of `otherwise`'s kind, or a more exact one.
template <typename Body> int guarded(ShimError *error, int32_t otherwise, Body &&body) {
  try {
    body();
    return 0;
  } catch (const torch::jit::JITException &exception) {
    std::string name = exception.getPythonClassName().value_or("");
    std::string text = exception.getOriginalMsg().value_or(exception.what());
    return fail(error, SHIM_ERROR_RAISED, name.empty() ? text : name + ": " + text);
  } catch (const c10::OutOfMemoryError &exception) {
    return fail(error, SHIM_ERROR_OUT_OF_MEMORY, exception.what_without_backtrace());
  } catch (const c10::Error &exception) {
    std::string text = exception.what_without_backtrace();
    return fail(error, kind_of(text, otherwise), text);
  } catch (const std::bad_alloc &) {
    return fail(error, SHIM_ERROR_OUT_OF_MEMORY, "the host has no memory left");
  } catch (const std::exception &exception) {
    std::string text = exception.what();
    return fail(error, kind_of(text, otherwise), text);
  } catch (...) {
    return fail(error, SHIM_ERROR_TORCH, "an exception without a text");
  }
}

at::Device device_of(int index) {
  return index < 0 ? at::Device(at::kCPU) : at::Device(at::kCUDA, static_cast<at::DeviceIndex>(index));
}

std::string text_of(const ShimBytes &bytes) {
  return std::string(reinterpret_cast<const char *>(bytes.data), bytes.size);
}

template <typename Item> c10::List<Item> list_of(const ShimArgument &argument) {
  c10::List<Item> list;
  list.reserve(argument.count);
  for (size_t i = 0; i < argument.count; ++i) list.push_back(static_cast<const Item *>(argument.items)[i]);
  return list;
}

at::IValue value_of(const ShimArgument &argument, const c10::Argument &schema) {
  switch (argument.tag) {
  case SHIM_DEFAULT:
    if (schema.default_value()) return *schema.default_value();
    TORCH_CHECK(schema.type()->kind() == c10::TypeKind::OptionalType, "missing argument '", schema.name(), "'");
    return at::IValue();
  case SHIM_TENSOR: return *static_cast<at::Tensor *>(argument.tensor);
  case SHIM_INT: return argument.integer;
  case SHIM_DOUBLE: return argument.number;
  case SHIM_BOOL: return argument.integer != 0;
  case SHIM_STRING: return text_of(*static_cast<const ShimBytes *>(argument.items));
  case SHIM_STRING_LIST: {
    c10::List<std::string> list;
    for (size_t i = 0; i < argument.count; ++i) list.push_back(text_of(static_cast<const ShimBytes *>(argument.items)[i]));
    return list;
  }
  case SHIM_INT_LIST: return list_of<int64_t>(argument);
  case SHIM_DOUBLE_LIST: return list_of<double>(argument);
  default: return at::IValue();
  }
}

void flatten(const at::IValue &value, const std::string &path, std::vector<ShimOutput> &out);

std::string child(const std::string &path, const std::string &name) { return path.empty() ? name : path + "." + name; }

void push_tensor(const std::string &path, at::Tensor tensor, std::vector<ShimOutput> &out) {
  ShimOutput output;
  output.path = path;
  output.is_tensor = true;
  output.tensor = std::move(tensor);
  out.push_back(std::move(output));
}

void push_strings(const std::string &path, std::vector<std::string> strings, std::vector<ShimOutput> &out) {
  ShimOutput output;
  output.path = path;
  output.strings = std::move(strings);
  out.push_back(std::move(output));
}

void flatten_tuple(const at::IValue &value, const std::string &path, std::vector<ShimOutput> &out) {
  auto tuple = value.toTuple();
  auto type = tuple->type<c10::TupleType>();
  auto names = type && type->schema() ? type->names() : std::nullopt;
  const auto &elements = tuple->elements();
  for (size_t i = 0; i < elements.size(); ++i) {
    std::string name = names && i < names->size() ? std::string((*names)[i]) : std::to_string(i);
    flatten(elements[i], child(path, name), out);
  }
}

void flatten_list(const at::IValue &value, const std::string &path, std::vector<ShimOutput> &out) {
  auto list = value.toList();
  if (list.elementType()->kind() == c10::TypeKind::StringType) {
    std::vector<std::string> strings;
    for (size_t i = 0; i < list.size(); ++i) strings.push_back(list.get(i).toStringRef());
    return push_strings(path, std::move(strings), out);
  }
  for (size_t i = 0; i < list.size(); ++i) flatten(list.get(i), child(path, std::to_string(i)), out);
}

void flatten_dict(const at::IValue &value, const std::string &path, std::vector<ShimOutput> &out) {
  for (const auto &entry : value.toGenericDict()) {
    std::string key;
    if (entry.key().isString()) {
      key = entry.key().toStringRef();
    } else if (entry.key().isInt()) {
      key = std::to_string(entry.key().toInt());
    } else {
      TORCH_CHECK(false, "output '", path, "' is a dict with keys of type ", entry.key().tagKind(),
                  "; only str and int keys can name outputs");
    }
    flatten(entry.value(), child(path, key), out);
  }
}

void flatten(const at::IValue &value, const std::string &path, std::vector<ShimOutput> &out) {
  auto options = [](at::ScalarType type) { return at::TensorOptions().dtype(type); };
  if (value.isTensor()) return push_tensor(path, value.toTensor(), out);
  if (value.isNone()) return;
  if (value.isBool()) return push_tensor(path, at::full({1}, value.toBool(), options(at::kBool)), out);
  if (value.isInt()) return push_tensor(path, at::full({1}, value.toInt(), options(at::kLong)), out);
  if (value.isDouble()) return push_tensor(path, at::full({1}, value.toDouble(), options(at::kDouble)), out);
  if (value.isString()) return push_strings(path, {value.toStringRef()}, out);
  if (value.isIntList()) return push_tensor(path, at::tensor(value.toIntVector(), options(at::kLong)), out);
  if (value.isDoubleList()) return push_tensor(path, at::tensor(value.toDoubleVector(), options(at::kDouble)), out);
  if (value.isTuple()) return flatten_tuple(value, path, out);
  if (value.isGenericDict()) return flatten_dict(value, path, out);
  if (value.isList()) return flatten_list(value, path, out);
  TORCH_CHECK(false, "output '", path, "' is a ", value.tagKind(), ", which has no form in the inference protocol");
}

// What a load error means is in its text alone.
int32_t load_kind(const std::string &text) {
  if (contains(text, "Unknown builtin op") || contains(text, "Couldn't find an operator")) return SHIM_ERROR_OPERATOR;
  if (contains(text, "maximum supported version for reading")) return SHIM_ERROR_VERSION;
  if (contains(text, "PytorchStreamReader") || contains(text, "zip archive") || contains(text, "open file failed") ||
      contains(text, "constants.pkl") || contains(text, "Unknown type name") || contains(text, "unpickler")) {
    return SHIM_ERROR_ARCHIVE;
  }
  return kind_of(text, SHIM_ERROR_ARCHIVE);
}

}  // namespace

void shim_string_free(char *text) { std::free(text); }

int shim_module_load(const char *path, int device, ShimModule **out, ShimError *error) {
  int status = guarded(error, SHIM_ERROR_ARCHIVE, [&] {
    c10::InferenceMode guard;
    auto module = torch::jit::load(path, device_of(device));
    module.eval();
    *out = new ShimModule{std::move(module)};
  });
  if (status != 0) error->kind = load_kind(error->message == nullptr ? "" : error->message);
  return status;
}

void shim_module_free(ShimModule *module) { delete module; }

int shim_module_deepcopy(const ShimModule *module, ShimModule **out, ShimError *error) {
  return guarded(error, SHIM_ERROR_TORCH, [&] {
    c10::InferenceMode guard;
    *out = new ShimModule{module->module.deepcopy()};
  });
}

int shim_module_share(const ShimModule *module, ShimModule **out, ShimError *error) {
  return guarded(error, SHIM_ERROR_TORCH, [&] { *out = new ShimModule{module->module}; });
}

int shim_module_freeze(const ShimModule *module, const char *method, ShimModule **out, ShimError *error) {
  return guarded(error, SHIM_ERROR_TORCH, [&] {
    c10::InferenceMode guard;
    std::vector<std::string> preserved{method};
    *out = new ShimModule{torch::jit::freeze(module->module, preserved)};
  });
}

int shim_module_describe(const ShimModule *module, char **json, ShimError *error) {
  return guarded(error, SHIM_ERROR_TORCH, [&] { *json = duplicate(shim::describe(module->module)); });
}

int shim_module_run(const ShimModule *module, const char *method, const ShimArgument *arguments, size_t count,
                    ShimOutputs **out, ShimError *error) {
  std::vector<at::IValue> stack;
  int status = guarded(error, SHIM_ERROR_ARGUMENT, [&] {
    const auto &schema = module->module.get_method(method).function().getSchema().arguments();
    TORCH_CHECK(schema.size() == count + 1, "method '", method, "' takes ", schema.size() - 1, " arguments, got ", count);
    for (size_t i = 0; i < count; ++i) stack.push_back(value_of(arguments[i], schema[i + 1]));
  });
  if (status != 0) return status;
  return guarded(error, SHIM_ERROR_TORCH, [&] {
    c10::InferenceMode guard;
    auto outputs = std::make_unique<ShimOutputs>();
    flatten(module->module.get_method(method)(std::move(stack)), "", outputs->items);
    *out = outputs.release();
  });
}

size_t shim_outputs_count(const ShimOutputs *outputs) { return outputs->items.size(); }

const char *shim_outputs_path(const ShimOutputs *outputs, size_t index) { return outputs->items[index].path.c_str(); }

int32_t shim_outputs_tag(const ShimOutputs *outputs, size_t index) {
  return outputs->items[index].is_tensor ? SHIM_TENSOR : SHIM_STRING_LIST;
}

void *shim_outputs_take_tensor(ShimOutputs *outputs, size_t index) {
  return new at::Tensor(std::move(outputs->items[index].tensor));
}

size_t shim_outputs_string_count(const ShimOutputs *outputs, size_t index) {
  return outputs->items[index].strings.size();
}

ShimBytes shim_outputs_string(const ShimOutputs *outputs, size_t index, size_t item) {
  const auto &text = outputs->items[index].strings[item];
  return {reinterpret_cast<const uint8_t *>(text.data()), text.size()};
}

void shim_outputs_free(ShimOutputs *outputs) { delete outputs; }

int shim_tensor_from_blob(void *data, const int64_t *shape, size_t rank, int32_t scalar_type, void (*release)(void *),
                          void *context, void **out, ShimError *error) {
  bool owned = false;
  int status = guarded(error, SHIM_ERROR_TORCH, [&] {
    auto options = at::TensorOptions().dtype(static_cast<at::ScalarType>(scalar_type));
    auto free = [release, context](void *) { release(context); };
    owned = true;  // from here on libtorch calls the deleter, even when it throws
    *out = new at::Tensor(torch::from_blob(data, at::IntArrayRef(shape, rank), free, options));
  });
  if (status != 0 && !owned) release(context);
  return status;
}

int shim_tensor_empty(const int64_t *shape, size_t rank, int32_t scalar_type, void **out, ShimError *error) {
  return guarded(error, SHIM_ERROR_TORCH, [&] {
    auto options = at::TensorOptions().dtype(static_cast<at::ScalarType>(scalar_type));
    *out = new at::Tensor(at::empty(at::IntArrayRef(shape, rank), options));
  });
}

int shim_tensor_to_host(const void *tensor, int copy, void **out, ShimError *error) {
  return guarded(error, SHIM_ERROR_TORCH, [&] {
    c10::InferenceMode guard;
    const auto &source = *static_cast<const at::Tensor *>(tensor);
    auto dense = source.layout() == at::kStrided ? source : source.to_dense();
    if (dense.is_conj()) dense = dense.resolve_conj();
    if (dense.is_neg()) dense = dense.resolve_neg();
    auto host = dense.is_cpu() ? dense : dense.to(at::kCPU);
    auto flat = host.contiguous();
    if (copy != 0 && flat.is_alias_of(source)) flat = flat.clone();
    *out = new at::Tensor(std::move(flat));
  });
}

int shim_tensor_to_device(const void *tensor, int device, void **out, ShimError *error) {
  return guarded(error, SHIM_ERROR_TORCH, [&] {
    c10::InferenceMode guard;
    *out = new at::Tensor(static_cast<const at::Tensor *>(tensor)->to(device_of(device)));
  });
}

int32_t shim_tensor_scalar_type(const void *tensor) {
  return static_cast<int32_t>(static_cast<const at::Tensor *>(tensor)->scalar_type());
}

size_t shim_tensor_rank(const void *tensor) { return static_cast<const at::Tensor *>(tensor)->sizes().size(); }

const int64_t *shim_tensor_shape(const void *tensor) { return static_cast<const at::Tensor *>(tensor)->sizes().data(); }

size_t shim_tensor_size_bytes(const void *tensor) {
  const auto &value = *static_cast<const at::Tensor *>(tensor);
  return static_cast<size_t>(value.numel()) * value.element_size();
}

void *shim_tensor_data(const void *tensor) { return static_cast<const at::Tensor *>(tensor)->data_ptr(); }

int shim_thread_use_stream(int device, ShimError *error) {
  return guarded(error, SHIM_ERROR_DEVICE, [&] {
    c10::impl::VirtualGuardImpl guard(at::kCUDA);
    guard.setDevice(device_of(device));
    guard.exchangeStream(guard.getStreamFromGlobalPool(device_of(device)));
  });
}

int shim_module_define(const char *source, const char *attributes, const char *path, ShimError *error) {
  return guarded(error, SHIM_ERROR_TORCH, [&] {
    torch::jit::Module module("Model");
    std::istringstream lines(attributes);
    for (std::string line; std::getline(lines, line);) {
      auto middle = line.find('=');
      TORCH_CHECK(middle != std::string::npos, "attribute line without '=': ", line);
      module.register_buffer(line.substr(0, middle), at::full({1}, std::stof(line.substr(middle + 1))));
    }
    module.define(source);
    module.save(path);
  });
}
