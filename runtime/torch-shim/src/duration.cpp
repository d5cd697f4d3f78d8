// A walk over a method's graph for all that turns a tensor's values into numbers, with which code counts, chooses or allocates, and
// for operators whose result is as large as values say. Where there is neither, shapes alone decide what is run.

#include "duration.h"

#include "conditions.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/runtime/operator.h>

#include <set>
#include <string>
#include <unordered_map>

namespace shim {
namespace {

using c10::TypeKind;
using c10::TypePtr;
using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;
using Names = std::set<std::string>;

// Whether values of `type` may be, or hold, what `is_sought` says; a type of which nothing is known may be anything.
template <typename IsSought> bool holds(const TypePtr &type, IsSought &&is_sought) {
  switch (type->kind()) {
  case TypeKind::OptionalType:
  case TypeKind::TupleType:
  case TypeKind::ListType:
  case TypeKind::DictType:
  case TypeKind::FutureType:
    for (const auto &item : type->containedTypes()) {
      if (holds(item, is_sought)) return true;
    }
    return false;
  case TypeKind::NoneType: return false;
  default: return is_sought(type->kind());
  }
}

bool is_plain(TypeKind kind) {
  switch (kind) {
  case TypeKind::IntType:
  case TypeKind::FloatType:
  case TypeKind::ComplexType:
  case TypeKind::BoolType:
  case TypeKind::NumberType:
  case TypeKind::StringType:
  case TypeKind::SymIntType:
  case TypeKind::SymFloatType:
  case TypeKind::SymBoolType: return true;
  default: return false;
  }
}

bool takes_tensors(Node *node) {
  for (Value *input : node->inputs()) {
    // Numbers and devices hold none; anything else might.
    auto may_be_tensor = [](TypeKind kind) {
      return !is_plain(kind) && kind != TypeKind::DeviceObjType && kind != TypeKind::GeneratorType;
    };
    if (holds(input->type(), may_be_tensor)) return true;
  }
  return false;
}

bool gives_plain_values(Node *node) {
  for (Value *output : node->outputs()) {
    auto may_be_plain = [](TypeKind kind) { return kind != TypeKind::TensorType; };
    if (holds(output->type(), may_be_plain)) return true;
  }
  return false;
}

// Whether arguments of `type` are tensors of a fixed number.
bool is_of_tensors(const TypePtr &type) {
  if (type->kind() == TypeKind::TensorType) return true;
  if (type->kind() != TypeKind::OptionalType && type->kind() != TypeKind::TupleType) return false;
  for (const auto &item : type->containedTypes()) {
    if (item->kind() != TypeKind::NoneType && !is_of_tensors(item)) return false;
  }
  return true;
}

// Operators that say of a tensor what its values have no part in.
bool tells_shape_or_type(Node *node, const std::string &name) {
  static const Names names{
      "aten::size",          "aten::dim",         "aten::ndimension",   "aten::len",          "aten::numel",
      "aten::stride",        "aten::get_device",  "aten::result_type",  "aten::is_same_size", "aten::storage_offset",
      "aten::is_contiguous", "aten::is_complex",  "aten::is_signed",    "aten::is_inference", "aten::is_floating_point",
      "aten::is_conj",       "aten::is_neg",      "aten::__is__",       "aten::__isnot__",    "aten::has_torch_function",
      "aten::is_leaf",       "prim::is_cuda",     "prim::is_cpu",       "prim::is_xla",       "prim::is_xpu",
      "prim::is_mps",        "prim::is_ipu",      "prim::is_ort",       "prim::is_maia",      "prim::is_hpu",
      "prim::is_mtia",       "prim::is_vulkan",   "prim::is_meta",      "prim::is_mkldnn",    "prim::is_quantized",
      "prim::is_sparse",     "prim::is_nested",   "prim::requires_grad", "prim::dtype",       "prim::device",
      "prim::layout",        "prim::itemsize",    "prim::nbytes",       "prim::ndim",         "prim::shape",
      "prim::is_sparse_csr"};
  if (name == "aten::__contains__") return node->input(0)->type()->kind() == TypeKind::DictType;
  return names.count(name) != 0;
}

// Operators that give back what was put into a container, as it was.
bool hands_out(const std::string &name) {
  static const Names names{"aten::__getitem__", "aten::items", "aten::keys", "aten::values", "aten::get",
                           "aten::copy",        "aten::list",  "aten::pop",  "aten::append", "aten::insert"};
  return names.count(name) != 0;
}

bool begins_with(const std::string &text, const std::string &begin) { return text.compare(0, begin.size(), begin) == 0; }

// Operators whose results are as large as the values say, or that work through as much.
bool has_size_of_values(Node *node, const c10::FunctionSchema &schema, const std::string &name) {
  static const Names names{"aten::nonzero",         "aten::nonzero_numpy",       "aten::argwhere",
                           "aten::masked_select",   "aten::bincount",            "aten::one_hot",
                           "aten::linalg_lstsq",    "aten::_pack_padded_sequence", "aten::_pad_packed_sequence",
                           "aten::segment_reduce",  "aten::embedding_bag",       "aten::_embedding_bag",
                           "aten::ctc_loss",        "aten::_ctc_loss"};
  if (names.count(name) != 0 || begins_with(name, "aten::unique") || begins_with(name, "aten::_unique")) return true;
  if (name.find("sparse") != std::string::npos || name.find("nested") != std::string::npos) return true;
  if (name == "aten::repeat_interleave") return schema.overload_name() != "self_int";
  if (name == "aten::tensor_split") return node->input(1)->type()->kind() == TypeKind::TensorType;
  if (name == "aten::where") return node->inputs().size() == 1;
  auto operation = c10::Dispatcher::singleton().findSchema(schema.operator_name());
  return operation && (operation->hasTag(at::Tag::dynamic_output_shape) || operation->hasTag(at::Tag::data_dependent_output));
}

// Whether a tensor is used as an index that is surely a mask.
bool indexes_by_mask(Node *node) {
  static const Names masks{"aten::gt",          "aten::ge",         "aten::lt",          "aten::le",    "aten::eq",
                           "aten::ne",          "aten::isnan",      "aten::isinf",       "aten::isfinite", "aten::isin",
                           "aten::logical_and", "aten::logical_or", "aten::logical_not", "aten::logical_xor",
                           "aten::bitwise_not", "aten::bitwise_and", "aten::bitwise_or", "aten::__and__", "aten::__or__"};
  Node *indices = node->input(1)->node();
  if (indices->kind() != c10::prim::ListConstruct) return true;
  for (Value *index : indices->inputs()) {
    if (masks.count(index->node()->kind().toQualString()) != 0) return true;
  }
  return false;
}

class Walk {
public:
  Walk(const std::shared_ptr<Graph> &graph, const at::IValue &self) : conditions_(graph, self) {
    for (size_t i = 1; i < graph->inputs().size(); ++i) {
      Value *argument = graph->inputs()[i];
      depends_ = depends_ || !(is_of_tensors(argument->type()) || argument->uses().empty());
    }
    block(graph->block());
  }

  // An index may be a mask: then what it selects may be counted by a loop.
  bool depends() const { return depends_ || (has_loop_ && has_index_); }

private:
  void block(Block *block) {
    for (Node *node : block->nodes()) {
      if (depends_) return;
      depends_ = visit(node);
    }
  }

  bool visit(Node *node) {
    switch (node->kind()) {
    case c10::prim::Constant:
    case c10::prim::GetAttr:
    case c10::prim::SetAttr:
    case c10::prim::TupleUnpack:
    case c10::prim::TupleIndex:
    case c10::prim::TupleSlice:
    case c10::prim::TupleConstruct:
    case c10::prim::ListUnpack:
    case c10::prim::ListConstruct:
    case c10::prim::DictConstruct:
    case c10::prim::CreateObject:
    case c10::prim::unchecked_cast:
    case c10::prim::unchecked_unwrap_optional:
    case c10::prim::Print:
    case c10::prim::RaiseException:
    case c10::prim::Uninitialized:
    case c10::prim::isinstance:
    case c10::aten::wait: return false;
    case c10::prim::If: {
      auto condition = conditions_.known(node->input(0));
      for (size_t which = 0; which < 2; ++which) {
        if (!condition || *condition == (which == 0)) block(node->blocks()[which]);
      }
      return depends_;
    }
    case c10::prim::Loop:
      has_loop_ = true;
      block(node->blocks()[0]);
      return depends_;
    default: break;
    }
    if (node->kind() == c10::prim::fork && node->hasAttribute(c10::attr::Subgraph)) {
      block(node->g(c10::attr::Subgraph)->block());
      return depends_;
    }
    return operation(node);
  }

  // An operator of libtorch, known by its schema. What calls code that cannot be seen has none, or is not libtorch's.
  bool operation(Node *node) {
    const auto *schema = node->maybeSchema();
    std::string name = node->kind().toQualString();
    bool is_own = node->kind().is_aten() || node->kind().is_prim() || begins_with(name, "quantized::");
    if (schema == nullptr || !node->blocks().empty() || node->hasAttribute(c10::attr::Subgraph) || !is_own) return true;
    if (tells_shape_or_type(node, name)) return false;
    if (has_size_of_values(node, *schema, name)) return true;
    if (name == "aten::index") {
      has_index_ = true;
      return indexes_by_mask(node);
    }
    if (!gives_plain_values(node) || hands_out(name)) return false;
    static const Names changing{"aten::time", "prim::TimePoint", "aten::seed", "aten::initial_seed"};
    if (!takes_tensors(node)) return node->isNondeterministic() || changing.count(name) != 0;
    return !is_of_numbers(node->input(0)) || node->inputs().size() != 1;
  }

  // Tracing makes tensors of sizes, computes with them and makes numbers of them again. Nothing else may touch such a tensor, or it
  // might be written to.
  bool is_of_numbers(Value *value) {
    static const Names arithmetic{"prim::NumToTensor", "aten::add", "aten::sub",  "aten::mul",   "aten::div",      "aten::neg",
                                  "aten::remainder",   "aten::ceil", "aten::floor", "aten::rsub", "aten::floor_divide"};
    static const Names readers{"aten::Int", "aten::Float", "aten::IntImplicit", "aten::FloatImplicit", "aten::ScalarImplicit"};
    auto is_one_of = [](Node *node, const Names &names) {
      const auto *schema = node->maybeSchema();
      return schema != nullptr && !schema->is_mutable() && names.count(node->kind().toQualString()) != 0;
    };
    auto [entry, is_new] = of_numbers_.emplace(value, false);
    if (!is_new) return entry->second;
    Node *node = value->node();
    bool is_found = node->kind() == c10::prim::Constant || is_one_of(node, arithmetic);
    if (node->kind() != c10::prim::Constant) {
      for (const auto &use : value->uses()) {
        is_found = is_found && (is_one_of(use.user, arithmetic) || is_one_of(use.user, readers));
      }
      for (Value *input : node->inputs()) {
        is_found = is_found && (is_plain(input->type()->kind()) || is_of_numbers(input));
      }
    }
    return of_numbers_[value] = is_found;
  }

  Conditions conditions_;
  std::unordered_map<Value *, bool> of_numbers_;
  bool has_loop_ = false;
  bool has_index_ = false;
  bool depends_ = false;
};

}  // namespace

bool duration_depends_on_values(const std::shared_ptr<Graph> &graph, const at::IValue &self) {
  return Walk(graph, self).depends();
}

}  // namespace shim
