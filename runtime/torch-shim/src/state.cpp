// Walks all that a module could keep from one call to the next.

#include "state.h"

#include <torch/csrc/jit/ir/constants.h>
#include <torch/script.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <unordered_map>
#include <unordered_set>

namespace shim {
namespace {

using torch::jit::Block;
using torch::jit::Node;

// 8 MiB at a time.
constexpr int64_t CHUNK = 1 << 20;
constexpr uint64_t ODD = 0x9E3779B97F4A7C15;
constexpr uint64_t EVEN = ODD - 1;

// Gives to `leaf` each tensor, number and text that hangs on a value, and those that the code of its methods captured.
class Walk {
public:
  using Leaf = std::function<void(const at::IValue &, bool is_constant)>;

  explicit Walk(Leaf leaf) : leaf_(std::move(leaf)) {}

  void value(const at::IValue &value) {
    if (value.isObject()) return object(value.toObject());
    if (value.isTuple()) {
      for (const auto &item : value.toTupleRef().elements()) this->value(item);
    } else if (value.isList()) {
      leaf_(static_cast<int64_t>(value.toListRef().size()), is_constant_);
      for (const at::IValue &item : value.toListRef()) this->value(item);
    } else if (value.isGenericDict()) {
      leaf_(static_cast<int64_t>(value.toGenericDict().size()), is_constant_);
      for (const auto &entry : value.toGenericDict()) {
        this->value(entry.key());
        this->value(entry.value());
      }
    } else {
      leaf_(value, is_constant_);
    }
  }

private:
  void object(const c10::intrusive_ptr<c10::ivalue::Object> &object) {
    if (!objects_.insert(object.get()).second) return;
    for (const auto &slot : object->slots()) value(slot);
    for (torch::jit::Function *method : object->type()->methods()) function(method);
  }

  void function(torch::jit::Function *function) {
    if (!functions_.insert(function).second) return;
    auto *graph_function = torch::jit::tryToGraphFunction(*function);
    if (graph_function != nullptr) block(graph_function->graph()->block());
  }

  void block(Block *block) {
    for (Node *node : block->nodes()) {
      if (node->kind() == c10::prim::Constant) constant(node);
      if (node->kind() == c10::prim::CallMethod) called(node);
      if (node->hasAttribute(c10::attr::Subgraph)) this->block(node->g(c10::attr::Subgraph)->block());
      for (Block *inner : node->blocks()) this->block(inner);
    }
  }

  void constant(Node *node) {
    if (auto function = node->output()->type()->cast<c10::FunctionType>()) return this->function(function->function());
    auto constant = torch::jit::toIValue(node->output());
    if (!constant) return;
    bool is_memory = constant->isTensor() || constant->isList() || constant->isTuple() || constant->isGenericDict() ||
                     constant->isObject();
    if (!is_memory) return;
    bool outer = is_constant_;
    is_constant_ = true;
    value(*constant);
    is_constant_ = outer;
  }

  // What lies behind an interface is some object's class, whose methods are walked with the object.
  void called(Node *node) {
    auto type = node->input(0)->type()->cast<c10::ClassType>();
    auto *method = type ? type->findMethod(node->s(c10::attr::name)) : nullptr;
    if (method != nullptr) function(method);
  }

  Leaf leaf_;
  bool is_constant_ = false;
  std::unordered_set<const void *> objects_;
  std::unordered_set<torch::jit::Function *> functions_;
};

class Mixer {
public:
  void leaf(const at::IValue &value) {
    if (value.isTensor()) return tensor(value.toTensor());
    if (value.isInt()) return mix(static_cast<uint64_t>(value.toInt()));
    if (value.isBool()) return mix(value.toBool() ? 1 : 2);
    if (value.isString()) return mix(std::hash<std::string>()(value.toStringRef()));
    if (value.isDouble()) return mix(std::hash<double>()(value.toDouble()));
    mix(value.isNone() ? 3 : 4);
  }

  uint64_t result() const { return result_; }

private:
  void mix(uint64_t value) {
    result_ = (result_ ^ value) * ODD;
    result_ ^= result_ >> 29;
  }

  void tensor(const at::Tensor &tensor) {
    mix(tensor.defined() ? 5 : 6);
    if (!tensor.defined()) return;
    mix(static_cast<uint64_t>(tensor.scalar_type()));
    for (int64_t size : tensor.sizes()) mix(static_cast<uint64_t>(size));
    if (tensor.layout() == at::kSparse) {
      this->tensor(tensor._indices());
      this->tensor(tensor._values());
    } else if (tensor.layout() == at::kStrided && tensor.has_storage() && !tensor.is_meta()) {
      for (int64_t stride : tensor.strides()) mix(static_cast<uint64_t>(stride));
      mix(static_cast<uint64_t>(tensor.storage_offset()));
      if (storages_.insert(tensor.storage().unsafeGetStorageImpl()).second) storage(tensor.storage());
    }
  }

  // A sum of words, each times an odd number that depends on its place; computed where the bytes lie, the same on each device.
  void storage(const c10::Storage &storage) {
    auto bytes = static_cast<int64_t>(storage.nbytes());
    int64_t words = bytes / 8;
    for (int64_t start = 0; start < words; start += CHUNK) {
      int64_t count = std::min(CHUNK, words - start);
      mix(storage.device().is_cpu() ? sum_on_host(storage, start, count) : sum_on_device(view(storage, at::kLong, start, count)));
    }
    if (bytes % 8 == 0) return;
    auto rest = view(storage, at::kByte, words * 8, bytes % 8).cpu();
    for (int64_t i = 0; i < rest.numel(); ++i) mix(rest.const_data_ptr<uint8_t>()[i]);
  }

  static uint64_t sum_on_host(const c10::Storage &storage, int64_t start, int64_t count) {
    const auto *bytes = static_cast<const uint8_t *>(storage.data()) + start * 8;
    uint64_t sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      uint64_t word = 0;
      std::memcpy(&word, bytes + i * 8, 8);
      sum += word * (static_cast<uint64_t>(i) * EVEN + 1);
    }
    return sum;
  }

  uint64_t sum_on_device(const at::Tensor &words) {
    auto &[weights, products] = scratch_[words.device()];
    if (!weights.defined()) {
      weights = at::arange(CHUNK, words.options()).mul_(static_cast<int64_t>(EVEN)).add_(1);
      products = at::empty({CHUNK}, words.options());
    }
    auto product = products.narrow(0, 0, words.numel());
    at::mul_out(product, words, weights.narrow(0, 0, words.numel()));
    return static_cast<uint64_t>(product.sum().item<int64_t>());
  }

  static at::Tensor view(const c10::Storage &storage, at::ScalarType type, int64_t offset, int64_t count) {
    return at::empty({0}, at::TensorOptions().dtype(type).device(storage.device())).set_(storage, offset, {count}, {1});
  }

  uint64_t result_ = 0;
  std::unordered_set<const void *> storages_;
  std::unordered_map<at::Device, std::pair<at::Tensor, at::Tensor>> scratch_;
};

}  // namespace

uint64_t fingerprint(const torch::jit::Module &module) {
  Mixer mixer;
  Walk walk([&](const at::IValue &value, bool) { mixer.leaf(value); });
  walk.value(module._ivalue());
  return mixer.result();
}

std::vector<at::Tensor> constant_tensors(const torch::jit::Module &module) {
  std::vector<at::Tensor> tensors;
  Walk walk([&](const at::IValue &value, bool is_constant) {
    if (is_constant && value.isTensor() && value.toTensor().defined()) tensors.push_back(value.toTensor());
  });
  walk.value(module._ivalue());
  return tensors;
}

}  // namespace shim
