// Loading, describing and running TorchScript; see shim.h for the rules.

#include "shim.h"

#include <caffe2/serialize/inline_container.h>
#include <caffe2/serialize/read_adapter_interface.h>
#include <sys/stat.h>
#include <torch/csrc/jit/runtime/print_handler.h>
#include <torch/script.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include "analysis.h"
#include "guard.h"
#include "pickle.h"
#include "state.h"

using shim::device_of;
using shim::duplicate;
using shim::guarded;

struct ShimModule {
  torch::jit::Module module;
};

// Tensors with what they held.
struct ShimConstants {
  std::vector<std::pair<at::Tensor, at::Tensor>> kept;
};

struct ShimOutput {
  std::string path;
  std::unique_ptr<at::Tensor> tensor;  // null for strings
  std::vector<std::string> strings;
};

struct ShimOutputs {
  std::vector<ShimOutput> items;
};

namespace {

// An open file, read by position.
class FileReader : public caffe2::serialize::ReadAdapterInterface {
public:
  explicit FileReader(int file) : file_(file) {
    struct stat status;
    TORCH_CHECK(fstat(file, &status) == 0, "open file failed: ", std::strerror(errno));
    size_ = static_cast<size_t>(status.st_size);
  }

  size_t size() const override { return size_; }

  size_t read(uint64_t position, void *buffer, size_t count, const char *what) const override {
    size_t done = 0;
    while (done < count) {
      auto offset = static_cast<off_t>(position + done);
      ssize_t got = pread(file_, static_cast<char *>(buffer) + done, count - done, offset);
      if (got < 0 && errno == EINTR) continue;
      TORCH_CHECK(got >= 0, "PytorchStreamReader failed reading ", what, ": ", std::strerror(errno));
      if (got == 0) break;
      done += static_cast<size_t>(got);
    }
    return done;
  }

private:
  int file_;
  size_t size_ = 0;
};

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
  output.tensor = std::make_unique<at::Tensor>(std::move(tensor));
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

std::atomic<void (*)(const char *, size_t)> print_handler{nullptr};

void print(const std::string &text) {
  auto handler = print_handler.load();
  if (handler != nullptr) handler(text.data(), text.size());
}

}  // namespace

void shim_string_free(char *text) { std::free(text); }

int shim_module_load(int file, int device, ShimModule **out, ShimError *error) {
  return guarded(error, [&] {
    c10::InferenceMode guard;
    auto archive = std::make_shared<FileReader>(file);
    caffe2::serialize::PyTorchStreamReader reader(archive);
    shim::check_pickles(reader);
    auto module = torch::jit::load(archive, device_of(device));
    module.eval();
    *out = new ShimModule{std::move(module)};
  });
}

void shim_module_free(ShimModule *module) { delete module; }

int shim_module_deepcopy(const ShimModule *module, ShimModule **out, ShimError *error) {
  return guarded(error, [&] {
    c10::InferenceMode guard;
    *out = new ShimModule{module->module.deepcopy()};
  });
}

int shim_module_share(const ShimModule *module, ShimModule **out, ShimError *error) {
  return guarded(error, [&] { *out = new ShimModule{module->module}; });
}

int shim_module_freeze(const ShimModule *module, const char *method, ShimModule **out, ShimError *error) {
  return guarded(error, [&] {
    c10::InferenceMode guard;
    std::vector<std::string> preserved{method};
    *out = new ShimModule{torch::jit::freeze(module->module, preserved)};
  });
}

int shim_module_describe(const ShimModule *module, char **json, ShimError *error) {
  return guarded(error, [&] {
    *json = duplicate(shim::describe(module->module));
    if (*json == nullptr) throw std::bad_alloc();
  });
}

int shim_module_fingerprint(const ShimModule *module, uint64_t *out, ShimError *error) {
  return guarded(error, [&] {
    c10::InferenceMode guard;
    *out = shim::fingerprint(module->module);
  });
}

int shim_constants_keep(const ShimModule *module, ShimConstants **out, ShimError *error) {
  return guarded(error, [&] {
    c10::InferenceMode guard;
    auto constants = std::make_unique<ShimConstants>();
    for (auto &tensor : shim::constant_tensors(module->module)) constants->kept.emplace_back(tensor, tensor.clone());
    *out = constants.release();
  });
}

int shim_constants_restore(const ShimConstants *constants, ShimError *error) {
  return guarded(error, [&] {
    c10::InferenceMode guard;
    for (auto [tensor, held] : constants->kept) {
      if (tensor.sizes() != held.sizes()) tensor.resize_(held.sizes());
      tensor.copy_(held);
    }
  });
}

void shim_constants_free(ShimConstants *constants) { delete constants; }

int shim_module_run(const ShimModule *module, const char *method, const ShimArgument *arguments, size_t count,
                    ShimOutputs **out, ShimError *error) {
  torch::jit::Function *function = nullptr;
  torch::jit::Stack stack;
  int status = guarded(error, [&] {
    function = &module->module.get_method(method).function();
    const auto &schema = function->getSchema();
    size_t taken = schema.arguments().size() - 1;
    TORCH_CHECK(taken == count, "method '", method, "' takes ", taken, " arguments, got ", count);
    stack.push_back(module->module._ivalue());
    for (size_t i = 0; i < count; ++i) stack.push_back(value_of(arguments[i], schema.arguments()[i + 1]));
    schema.checkAndNormalizeInputs(stack, {});
  });
  if (status != 0) {
    if (error->thrown != SHIM_THROWN_OUT_OF_MEMORY) error->thrown = SHIM_THROWN_SCHEMA;
    return status;
  }
  return guarded(error, [&] {
    c10::InferenceMode guard;
    auto outputs = std::make_unique<ShimOutputs>();
    function->run(stack);
    flatten(stack.front(), "", outputs->items);
    *out = outputs.release();
  });
}

size_t shim_outputs_count(const ShimOutputs *outputs) { return outputs->items.size(); }

const char *shim_outputs_path(const ShimOutputs *outputs, size_t index) { return outputs->items[index].path.c_str(); }

int32_t shim_outputs_tag(const ShimOutputs *outputs, size_t index) {
  return outputs->items[index].tensor != nullptr ? SHIM_TENSOR : SHIM_STRING_LIST;
}

void *shim_outputs_take_tensor(ShimOutputs *outputs, size_t index) {
  return outputs->items[index].tensor.release();
}

size_t shim_outputs_string_count(const ShimOutputs *outputs, size_t index) {
  return outputs->items[index].strings.size();
}

ShimBytes shim_outputs_string(const ShimOutputs *outputs, size_t index, size_t item) {
  const auto &text = outputs->items[index].strings[item];
  return {reinterpret_cast<const uint8_t *>(text.data()), text.size()};
}

void shim_outputs_free(ShimOutputs *outputs) { delete outputs; }

void shim_print_handler_set(void (*handler)(const char *, size_t)) {
  print_handler.store(handler);
  torch::jit::setPrintHandler(print);
}
