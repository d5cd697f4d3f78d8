// A points-to analysis over a method's graph.
//
// Memory is divided into regions: the module with all that hangs on it, the constants, the arguments, and one for each
// container that the method makes itself. A value points to regions and a region contains regions; both sets only grow, so
// running every node until nothing changes ends. A write to the module's or the constants' region is state.
// libtorch's own alias analysis is no help here: it puts all that was ever inside a container into one set with the arguments.

#include "effects.h"

#include "conditions.h"

#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/runtime/operator.h>

#include <set>
#include <string>
#include <unordered_map>
#include <vector>

namespace shim {
namespace {

using c10::AliasInfo;
using c10::TypeKind;
using c10::TypePtr;
using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;

using Regions = std::set<size_t>;

constexpr size_t MODULE = 0;
constexpr size_t CONSTANTS = 1;
constexpr size_t INPUTS = 2;

// Whether values of `type` are memory that can be written to, or hold some.
bool holds_memory(const TypePtr &type) {
  switch (type->kind()) {
  case TypeKind::IntType:
  case TypeKind::FloatType:
  case TypeKind::ComplexType:
  case TypeKind::BoolType:
  case TypeKind::NumberType:
  case TypeKind::StringType:
  case TypeKind::NoneType:
  case TypeKind::DeviceObjType:
  case TypeKind::StreamObjType:
  case TypeKind::GeneratorType:
  case TypeKind::ScalarTypeType:
  case TypeKind::LayoutType:
  case TypeKind::MemoryFormatType:
  case TypeKind::EnumType:
  case TypeKind::FunctionType:
  case TypeKind::SymIntType:
  case TypeKind::SymFloatType:
  case TypeKind::SymBoolType: return false;
  case TypeKind::OptionalType: return holds_memory(type->expectRef<c10::OptionalType>().getElementType());
  case TypeKind::TupleType:
    for (const auto &item : type->containedTypes()) {
      if (holds_memory(item)) return true;
    }
    return false;
  default: return true;
  }
}

// Whether values of `type` can hold other memory: everything but a tensor and what holds numbers alone.
bool is_container(const TypePtr &type) {
  if (type->kind() == TypeKind::TensorType || !holds_memory(type)) return false;
  if (type->kind() == TypeKind::OptionalType) return is_container(type->expectRef<c10::OptionalType>().getElementType());
  if (type->kind() == TypeKind::ListType) return holds_memory(type->expectRef<c10::ListType>().getElementType());
  if (type->kind() == TypeKind::DictType) return holds_memory(type->expectRef<c10::DictType>().getValueType());
  return true;
}

bool shares_a_set(const AliasInfo &output, const AliasInfo &input) {
  for (const auto &set : output.beforeSets()) {
    if (input.beforeSets().count(set) != 0 || input.afterSets().count(set) != 0) return true;
  }
  return false;
}

bool writes_inside(const AliasInfo &info) {
  for (const auto &inner : info.containedTypes()) {
    if (inner.isWrite() || writes_inside(inner)) return true;
  }
  return false;
}

// Operators whose schema says that their result is new and which may all the same give back what they were given first.
bool may_return_its_input(const std::string &name) {
  static const std::set<std::string> names{
      "aten::dropout",         "aten::feature_dropout", "aten::alpha_dropout",     "aten::feature_alpha_dropout",
      "aten::native_dropout",  "aten::type_as",         "aten::sum_to_size",       "aten::conj_physical",
      "aten::atleast_1d",      "aten::atleast_2d",      "aten::atleast_3d",        "aten::pixel_shuffle",
      "aten::pixel_unshuffle", "aten::channel_shuffle", "aten::native_channel_shuffle",
      "aten::_unsafe_view",    "aten::dequantize",       "aten::to_dense"};
  return names.count(name) != 0;
}

// The same of operators that combine tensors, when there is but one.
bool returns_a_single_input(Node *node, const std::string &name) {
  if (name != "aten::einsum" && name != "aten::cartesian_prod") return false;
  for (Value *input : node->inputs()) {
    if (input->type()->kind() != TypeKind::ListType || !holds_memory(input->type())) continue;
    Node *maker = input->node();
    return maker->kind() != c10::prim::ListConstruct || maker->inputs().size() == 1;
  }
  return false;
}

bool ends_with(const std::string &text, const std::string &end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Batch and instance normalisation update running statistics while they train, which most of their schemas keep to themselves.
bool is_normalisation(const std::string &name) {
  if (ends_with(name, "_backward") || ends_with(name, "_no_update") || ends_with(name, "_elemt")) return false;
  return name.find("batch_norm") != std::string::npos || name.find("instance_norm") != std::string::npos;
}

class Analysis {
public:
  Analysis(const std::shared_ptr<Graph> &graph, const at::IValue &self) : contents_(3), conditions_(graph, self) {
    // What hangs on a region of these three belongs to it.
    for (size_t region : {MODULE, CONSTANTS, INPUTS}) contents_[region].insert(region);
    for (size_t i = 0; i < graph->inputs().size(); ++i) point(graph->inputs()[i], {i == 0 ? MODULE : INPUTS});
    do {
      changed_ = false;
      block(graph->block());
    } while (changed_);
  }

  Effects effects() const { return effects_; }

private:
  const Regions &at(Value *value) { return points_to_[value]; }

  void grow(Regions &regions, const Regions &more) {
    size_t before = regions.size();
    regions.insert(more.begin(), more.end());
    changed_ = changed_ || regions.size() != before;
  }

  void point(Value *value, const Regions &regions) {
    if (!regions.empty() && holds_memory(value->type())) grow(points_to_[value], regions);
  }

  Regions inside(const Regions &regions) const {
    Regions out;
    for (size_t region : regions) out.insert(contents_[region].begin(), contents_[region].end());
    return out;
  }

  // `regions` and all that can be reached from them.
  Regions reach(const Regions &regions) const {
    Regions out = regions;
    for (size_t before = 0; before != out.size();) {
      before = out.size();
      Regions more = inside(out);
      out.insert(more.begin(), more.end());
    }
    return out;
  }

  Regions reach_of_inputs(Node *node) {
    Regions out;
    for (Value *input : node->inputs()) out.insert(at(input).begin(), at(input).end());
    return reach(out);
  }

  // The container that `output` is when the node makes one, with `held` inside.
  void make(Value *output, const Regions &held) {
    if (!is_container(output->type())) return;
    auto [entry, is_new] = made_.emplace(output, contents_.size());
    if (is_new) contents_.emplace_back();
    grow(contents_[entry->second], held);
    point(output, {entry->second});
  }

  void write(const Regions &regions) {
    Effects now = effects_;
    now.state = now.state || regions.count(MODULE) != 0;
    now.constants = now.constants || regions.count(CONSTANTS) != 0;
    now.inputs = now.inputs || regions.count(INPUTS) != 0;
    changed_ = changed_ || now.state != effects_.state || now.constants != effects_.constants || now.inputs != effects_.inputs;
    effects_ = now;
  }

  void put_into(const Regions &containers, const Regions &held) {
    for (size_t region : containers) grow(contents_[region], held);
  }

  void join(Value *to, Value *from) { point(to, at(from)); }

  void block(Block *block) {
    for (Node *node : block->nodes()) visit(node);
  }

  void branches(Node *node) {
    auto condition = conditions_.known(node->input(0));
    for (size_t which = 0; which < 2; ++which) {
      if (condition && *condition != (which == 0)) continue;
      Block *branch = node->blocks()[which];
      block(branch);
      for (size_t i = 0; i < branch->outputs().size(); ++i) join(node->outputs()[i], branch->outputs()[i]);
    }
  }

  // A loop's inputs are the largest count, the first condition and what is carried; its block's are the count and what is
  // carried, and its block gives the next condition and what is carried on.
  void loop(Node *node) {
    Block *body = node->blocks()[0];
    for (size_t i = 2; i < node->inputs().size(); ++i) {
      join(body->inputs()[i - 1], node->inputs()[i]);
      join(node->outputs()[i - 2], node->inputs()[i]);
    }
    block(body);
    for (size_t i = 1; i < body->outputs().size(); ++i) {
      join(body->inputs()[i], body->outputs()[i]);
      join(node->outputs()[i - 1], body->outputs()[i]);
    }
  }

  // A node that runs a graph of its own on its inputs, as `fork` does: its result is waited for.
  void subgraph(Node *node) {
    auto graph = node->g(c10::attr::Subgraph);
    for (size_t i = 0; i < graph->inputs().size() && i < node->inputs().size(); ++i) join(graph->inputs()[i], node->inputs()[i]);
    block(graph->block());
    Regions results;
    for (Value *output : graph->outputs()) results.insert(at(output).begin(), at(output).end());
    for (Value *output : node->outputs()) {
      point(output, results);
      make(output, results);
    }
  }

  // Code that cannot be seen into may write to all that it can reach, keep it and give it back.
  void unknown(Node *node) {
    Regions all = reach_of_inputs(node);
    write(all);
    put_into(all, all);
    for (Value *output : node->outputs()) {
      point(output, all);
      make(output, all);
    }
  }

  void visit(Node *node) {
    switch (node->kind()) {
    case c10::prim::Constant:
      if (torch::jit::toIValue(node->output())) point(node->output(), {CONSTANTS});
      return;
    case c10::prim::If: return branches(node);
    case c10::prim::Loop: return loop(node);
    case c10::prim::GetAttr: return point(node->output(), inside(at(node->input())));
    case c10::prim::SetAttr:
      write(at(node->input(0)));
      return put_into(at(node->input(0)), at(node->input(1)));
    case c10::prim::TupleUnpack:
    case c10::prim::TupleIndex:
    case c10::prim::TupleSlice:
    case c10::prim::ListUnpack:
    case c10::aten::wait: return take(node);
    case c10::prim::TupleConstruct:
    case c10::prim::ListConstruct:
    case c10::prim::DictConstruct:
    case c10::prim::CreateObject: return construct(node);
    case c10::prim::unchecked_cast:
    case c10::prim::unchecked_unwrap_optional: return join(node->output(), node->input(0));
    case c10::prim::Print:
    case c10::prim::RaiseException:
    case c10::prim::Uninitialized:
    case c10::prim::isinstance: return;
    default: break;
    }
    if (node->hasAttribute(c10::attr::Subgraph)) return subgraph(node);
    if (std::string(node->kind().toQualString()) == "prim::awaitable_wait") return take(node);
    operation(node);
  }

  void take(Node *node) {
    Node *maker = node->input(0)->node();
    if (node->kind() == c10::prim::TupleUnpack && maker->kind() == c10::prim::TupleConstruct) {
      for (size_t i = 0; i < node->outputs().size(); ++i) join(node->outputs()[i], maker->inputs()[i]);
      return;
    }
    Regions held = inside(at(node->input(0)));
    for (Value *output : node->outputs()) {
      point(output, held);
      make(output, held);
    }
  }

  void construct(Node *node) {
    Regions held;
    for (Value *input : node->inputs()) held.insert(at(input).begin(), at(input).end());
    make(node->output(), held);
  }

  // An operator of libtorch or of a library, known by its schema.
  void operation(Node *node) {
    const auto *schema = node->maybeSchema();
    if (schema == nullptr || !node->blocks().empty()) return unknown(node);
    bool is_own = node->kind().is_aten() || node->kind().is_prim();
    if (!is_own && node->getOperator().aliasAnalysisKind() == c10::AliasAnalysisKind::CONSERVATIVE) return unknown(node);
    std::string name = node->kind().toQualString();
    effects_.random = effects_.random || (node->isNondeterministic() && is_training(node, *schema));
    written_by(node, *schema, name);
    for (size_t i = 0; i < node->outputs().size(); ++i) {
      Value *output = node->outputs()[i];
      if (!holds_memory(output->type())) continue;
      const AliasInfo *alias = i < schema->returns().size() ? schema->returns()[i].alias_info() : nullptr;
      if (alias != nullptr) {
        aliased(node, *schema, output, *alias);
      } else {
        make(output, reach_of_inputs(node));
      }
      if (may_return_its_input(name)) join(output, node->input(0));
      if (returns_a_single_input(node, name)) point(output, reach_of_inputs(node));
    }
  }

  void written_by(Node *node, const c10::FunctionSchema &schema, const std::string &name) {
    bool is_statistic = is_normalisation(name);
    for (size_t i = 0; i < node->inputs().size() && i < schema.arguments().size(); ++i) {
      const auto &argument = schema.arguments()[i];
      if (is_statistic && (argument.name() == "running_mean" || argument.name() == "running_var")) {
        if (is_training(node, schema)) write(at(node->input(i)));
        continue;
      }
      const AliasInfo *alias = argument.alias_info();
      if (alias == nullptr || !(alias->isWrite() || writes_inside(*alias))) continue;
      if (alias->isWrite()) write(at(node->input(i)));
      if (writes_inside(*alias)) write(inside(at(node->input(i))));
      Regions others;
      for (Value *input : node->inputs()) {
        if (input != node->input(i)) others.insert(at(input).begin(), at(input).end());
      }
      if (is_container(node->input(i)->type())) put_into(at(node->input(i)), reach(others));
      // `a.set_(b)`: from here on `a` is `b`.
      if (name == "aten::set_" || name == "aten::set_data") write(reach(others));
    }
  }

  // Whether a normalisation may update its statistics, or a dropout draw numbers: unless its flag is known to be off.
  bool is_training(Node *node, const c10::FunctionSchema &schema) {
    for (size_t i = 0; i < node->inputs().size() && i < schema.arguments().size(); ++i) {
      const auto &name = schema.arguments()[i].name();
      if (name != "training" && name != "train" && name != "use_input_stats") continue;
      return conditions_.known(node->input(i)).value_or(true);
    }
    return true;
  }

  // An output that its schema ties to inputs: `(a)` to those of the same set, `(*)` to what its containers hold.
  void aliased(Node *node, const c10::FunctionSchema &schema, Value *output, const AliasInfo &alias) {
    bool is_wild = alias.isWildcardBefore() || alias.isWildcardAfter();
    Regions same;
    Regions held;
    bool is_tied = false;
    for (size_t i = 0; i < node->inputs().size() && i < schema.arguments().size(); ++i) {
      const Regions &regions = at(node->input(i));
      const AliasInfo *input = schema.arguments()[i].alias_info();
      if (is_wild) {
        Regions taken = i == 0 ? inside(regions) : regions;
        same.insert(taken.begin(), taken.end());
      }
      if (input == nullptr) continue;
      if (shares_a_set(alias, *input)) same.insert(regions.begin(), regions.end());
      for (const auto &inner : input->containedTypes()) {
        Regions elements = inside(regions);
        if (shares_a_set(alias, inner)) same.insert(elements.begin(), elements.end());
      }
      for (const auto &inner : alias.containedTypes()) {
        if (!shares_a_set(inner, *input)) continue;
        is_tied = true;
        held.insert(regions.begin(), regions.end());
      }
    }
    point(output, same);
    if (!alias.containedTypes().empty()) make(output, is_tied ? reach(held) : reach_of_inputs(node));
    if (is_wild) make(output, reach(same));
  }

  std::unordered_map<Value *, Regions> points_to_;
  std::unordered_map<Value *, size_t> made_;
  std::vector<Regions> contents_;
  Conditions conditions_;
  Effects effects_;
  bool changed_ = false;
};

}  // namespace

Effects effects_of(const std::shared_ptr<Graph> &graph, const at::IValue &self) { return Analysis(graph, self).effects(); }

}  // namespace shim
