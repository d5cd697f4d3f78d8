// Static facts about a TorchScript module: schemas, sizes, devices, and what each method writes to.

#include "analysis.h"

#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/script.h>

#include <cstdio>
#include <set>

namespace shim {
namespace {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;

std::string quoted(const std::string &text) {
  std::string out = "\"";
  for (unsigned char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", c);
      out += escape;
    } else {
      out += static_cast<char>(c);
    }
  }
  return out + "\"";
}

std::string type_json(const c10::TypePtr &type) {
  switch (type->kind()) {
  case c10::TypeKind::TensorType: return "{\"kind\":\"Tensor\"}";
  case c10::TypeKind::IntType: return "{\"kind\":\"Int\"}";
  case c10::TypeKind::FloatType: return "{\"kind\":\"Float\"}";
  case c10::TypeKind::BoolType: return "{\"kind\":\"Bool\"}";
  case c10::TypeKind::StringType: return "{\"kind\":\"Str\"}";
  case c10::TypeKind::NoneType: return "{\"kind\":\"None\"}";
  case c10::TypeKind::ListType:
    return "{\"kind\":\"List\",\"item\":" + type_json(type->expectRef<c10::ListType>().getElementType()) + "}";
  case c10::TypeKind::OptionalType:
    return "{\"kind\":\"Optional\",\"item\":" + type_json(type->expectRef<c10::OptionalType>().getElementType()) + "}";
  case c10::TypeKind::DictType:
    return "{\"kind\":\"Dict\",\"key\":" + type_json(type->expectRef<c10::DictType>().getKeyType()) +
           ",\"value\":" + type_json(type->expectRef<c10::DictType>().getValueType()) + "}";
  case c10::TypeKind::TupleType: {
    const auto &tuple = type->expectRef<c10::TupleType>();
    std::string out = "{\"kind\":\"Tuple\",\"items\":[";
    for (size_t i = 0; i < tuple.elements().size(); ++i) {
      out += (i == 0 ? "" : ",") + type_json(tuple.elements()[i]);
    }
    out += "],\"names\":[";
    if (tuple.schema()) {
      const auto &fields = tuple.schema()->arguments();
      for (size_t i = 0; i < fields.size(); ++i) out += (i == 0 ? "" : ",") + quoted(fields[i].name());
    }
    return out + "]}";
  }
  default: return "{\"kind\":\"Other\",\"name\":" + quoted(type->repr_str()) + "}";
  }
}

template <typename Visit> void each_node(Block *block, Visit &&visit) {
  for (Node *node : block->nodes()) {
    visit(node);
    for (Block *inner : node->blocks()) each_node(inner, visit);
  }
}

// In evaluation mode every `training` attribute is false; saying so lets dead branches, such as batch norm's counters, go.
void fold_training(const std::shared_ptr<Graph> &graph) {
  std::vector<Node *> reads;
  each_node(graph->block(), [&](Node *node) {
    if (node->kind() == c10::prim::GetAttr && node->s(c10::attr::name) == "training" &&
        node->output()->type()->kind() == c10::TypeKind::BoolType) {
      reads.push_back(node);
    }
  });
  for (Node *node : reads) {
    torch::jit::WithInsertPoint point(node);
    node->output()->replaceAllUsesWith(graph->insertConstant(false));
  }
  auto mutable_graph = graph;
  torch::jit::ConstantPropagation(mutable_graph);
  torch::jit::EliminateDeadCode(mutable_graph);
}

// Whether `object` belongs to the module rather than to an object that the method itself made.
bool is_of_module(Value *object) {
  while (object->node()->kind() == c10::prim::GetAttr) object = object->node()->input(0);
  return object->node()->kind() != c10::prim::CreateObject;
}

struct Writes {
  bool attributes = false;
  bool inputs = false;
};

Writes writes_of(const std::shared_ptr<Graph> &graph) {
  Writes writes;
  torch::jit::ValueSet attributes;
  torch::jit::ValueSet inputs;
  for (size_t i = 1; i < graph->inputs().size(); ++i) inputs.insert(graph->inputs()[i]);
  each_node(graph->block(), [&](Node *node) {
    if (node->kind() == c10::prim::SetAttr && is_of_module(node->input(0))) writes.attributes = true;
    if (node->kind() == c10::prim::GetAttr && node->output()->type()->kind() != c10::TypeKind::ClassType) {
      attributes.insert(node->output());
    }
  });
  // "Frozen" makes each read of an attribute memory of its own rather than part of one set with the arguments; every read is in
  // `attributes`, so a write through any of them is still seen.
  torch::jit::AliasDb aliases(graph, /*isFrozen=*/true);
  each_node(graph->block(), [&](Node *node) {
    if (node->kind() == c10::prim::SetAttr || !node->blocks().empty()) return;
    writes.attributes = writes.attributes || aliases.writesToAlias(node, attributes);
    writes.inputs = writes.inputs || aliases.writesToAlias(node, inputs);
  });
  return writes;
}

void collect_devices(const std::shared_ptr<Graph> &graph, std::set<std::string> &devices) {
  each_node(graph->block(), [&](Node *node) {
    if (node->kind() != c10::prim::Constant || !node->hasAttribute(c10::attr::value)) return;
    auto value = torch::jit::toIValue(node->output());
    if (!value) return;
    if (value->isDevice()) devices.insert(value->toDevice().str());
    if (value->isTensor() && value->toTensor().defined()) devices.insert(value->toTensor().device().str());
  });
}

std::string arguments_json(const std::vector<c10::Argument> &arguments, size_t from) {
  std::string out = "[";
  for (size_t i = from; i < arguments.size(); ++i) {
    out += i == from ? "" : ",";
    out += "{\"name\":" + quoted(arguments[i].name()) + ",\"type\":" + type_json(arguments[i].type()) +
           ",\"has_default\":" + (arguments[i].default_value() ? "true" : "false") + "}";
  }
  return out + "]";
}

template <typename Tensors> std::string sizes_json(const Tensors &tensors, std::set<std::string> &datatypes) {
  int64_t count = 0;
  int64_t bytes = 0;
  for (const at::Tensor &tensor : tensors) {
    if (!tensor.defined()) continue;
    count += tensor.numel();
    bytes += static_cast<int64_t>(tensor.nbytes());
    datatypes.insert(c10::toString(tensor.scalar_type()));
  }
  return "{\"count\":" + std::to_string(count) + ",\"size_bytes\":" + std::to_string(bytes) + "}";
}

std::string set_json(const std::set<std::string> &items) {
  std::string out = "[";
  for (const auto &item : items) out += (out.size() == 1 ? "" : ",") + quoted(item);
  return out + "]";
}

}  // namespace

std::string describe(const torch::jit::Module &module) {
  std::set<std::string> devices;
  std::string methods;
  for (const auto &method : module.get_methods()) {
    if (method.name().rfind("__", 0) == 0) continue;  // __setstate__ and the like are not for callers
    auto graph = method.graph()->copy();
    torch::jit::Inline(*graph);
    collect_devices(graph, devices);
    fold_training(graph);
    Writes writes = writes_of(graph);
    const auto &schema = method.function().getSchema();
    methods += methods.empty() ? "" : ",";
    methods += "{\"name\":" + quoted(method.name()) + ",\"arguments\":" + arguments_json(schema.arguments(), 1) +
               ",\"returns\":" + (schema.returns().empty() ? "{\"kind\":\"None\"}" : type_json(schema.returns()[0].type())) +
               ",\"is_stateful\":" + (writes.attributes ? "true" : "false") +
               ",\"mutates_inputs\":" + (writes.inputs ? "true" : "false") + "}";
  }
  std::set<std::string> datatypes;
  std::string parameters = sizes_json(module.parameters(), datatypes);
  std::set<std::string> ignored;
  std::string buffers = sizes_json(module.buffers(), ignored);
  return "{\"class_name\":" + quoted(module.type()->name() ? module.type()->name()->name() : "") + ",\"methods\":[" + methods +
         "],\"parameters\":" + parameters + ",\"buffers\":" + buffers + ",\"parameter_types\":" + set_json(datatypes) +
         ",\"constant_devices\":" + set_json(devices) + "}";
}

}  // namespace shim
