// Looks at constants, and at attributes of the module that the method does not set; tells nothing where it is not sure.

#include "conditions.h"

#include <torch/csrc/jit/ir/constants.h>

namespace shim {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;

Conditions::Conditions(const std::shared_ptr<Graph> &graph, const at::IValue &self) : module_(graph->inputs()[0]), self_(self) {
  collect_set_names(graph->block());
}

void Conditions::collect_set_names(Block *block) {
  for (Node *node : block->nodes()) {
    if (node->kind() == c10::prim::SetAttr) set_names_.insert(node->s(c10::attr::name));
    if (node->hasAttribute(c10::attr::Subgraph)) collect_set_names(node->g(c10::attr::Subgraph)->block());
    for (Block *inner : node->blocks()) collect_set_names(inner);
  }
}

// The object that `value` is, when it hangs on the module by attributes that the method does not set.
std::optional<at::IValue> Conditions::object(Value *value) {
  if (value == module_) return self_;
  Node *node = value->node();
  if (node->kind() != c10::prim::GetAttr || set_names_.count(node->s(c10::attr::name)) != 0) return std::nullopt;
  auto owner = object(node->input());
  if (!owner || !owner->isObject()) return std::nullopt;
  return owner->toObjectRef().getAttr(node->s(c10::attr::name));
}

std::optional<bool> Conditions::known(Value *value) {
  auto [entry, is_new] = known_.emplace(value, std::nullopt);
  if (is_new) {
    std::optional<bool> found = known_of(value);
    known_[value] = found;
    return found;
  }
  return entry->second;
}

std::optional<bool> Conditions::known_of(Value *value) {
  Node *node = value->node();
  switch (node->kind()) {
  case c10::prim::Constant: {
    auto constant = torch::jit::toIValue(value);
    return constant && constant->isBool() ? std::optional<bool>(constant->toBool()) : std::nullopt;
  }
  case c10::prim::GetAttr: {
    auto owner = node->input()->type()->cast<c10::ClassType>();
    bool is_training = owner && owner->is_module() && node->s(c10::attr::name) == "training";
    if (is_training) return false;
    auto found = object(value);
    return found && found->isBool() ? std::optional<bool>(found->toBool()) : std::nullopt;
  }
  case c10::aten::__not__: {
    auto of = known(node->input(0));
    return of ? std::optional<bool>(!*of) : std::nullopt;
  }
  case c10::aten::__is__:
  case c10::aten::__isnot__: {
    auto left = is_none(node->input(0));
    auto right = is_none(node->input(1));
    // Of two that are something it is not known whether they are the same.
    if (!left || !right || (!*left && !*right)) return std::nullopt;
    return (*left == *right) == (node->kind() == c10::aten::__is__);
  }
  case c10::prim::If: {
    auto condition = known(node->input(0));
    auto then = known(node->blocks()[0]->outputs()[value->offset()]);
    auto otherwise = known(node->blocks()[1]->outputs()[value->offset()]);
    if (condition) return *condition ? then : otherwise;
    return then == otherwise ? then : std::nullopt;
  }
  default: return std::nullopt;
  }
}

// Whether `value` is None whenever the graph runs.
std::optional<bool> Conditions::is_none(Value *value) {
  Node *node = value->node();
  if (node->kind() == c10::prim::If) {
    auto then = is_none(node->blocks()[0]->outputs()[value->offset()]);
    auto otherwise = is_none(node->blocks()[1]->outputs()[value->offset()]);
    if (auto condition = known(node->input(0))) return *condition ? then : otherwise;
    return then == otherwise ? then : std::nullopt;
  }
  auto found = node->kind() == c10::prim::Constant ? torch::jit::toIValue(value) : object(value);
  // An undefined tensor is None, and isn't.
  if (!found || (found->isTensor() && !found->toTensor().defined())) return std::nullopt;
  return found->isNone();
}

}  // namespace shim
