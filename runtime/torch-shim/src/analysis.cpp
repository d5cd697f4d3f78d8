// Static facts about a TorchScript module: schemas, sizes, devices, and what each method writes to.

#include "analysis.h"

#include <torch/csrc/jit/passes/inliner.h>
#include <torch/script.h>

#include <cstdio>
#include <set>

#include "duration.h"
#include "effects.h"

namespace shim {
namespace {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;

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

std::string boolean(bool value) { return value ? "true" : "false"; }

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
    if (node->hasAttribute(c10::attr::Subgraph)) each_node(node->g(c10::attr::Subgraph)->block(), visit);
  }
}

// Replaces every call by what it calls, in the graphs that `fork` runs too; `graph` is ours to change.
void expand(const std::shared_ptr<Graph> &graph) {
  torch::jit::Inline(*graph);
  std::vector<Node *> forks;
  each_node(graph->block(), [&](Node *node) {
    if (node->hasAttribute(c10::attr::Subgraph)) forks.push_back(node);
  });
  for (Node *node : forks) {
    node->g_(c10::attr::Subgraph, node->g(c10::attr::Subgraph)->copy());
    expand(node->g(c10::attr::Subgraph));
  }
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
           ",\"has_default\":" + boolean(arguments[i].default_value().has_value()) + "}";
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
    expand(graph);
    collect_devices(graph, devices);
    Effects effects = effects_of(graph, module._ivalue());
    bool is_stateful = effects.state || effects.constants;
    // What earlier calls left behind may be of any size.
    bool depends_on_values = is_stateful || duration_depends_on_values(graph, module._ivalue());
    const auto &schema = method.function().getSchema();
    methods += methods.empty() ? "" : ",";
    methods += "{\"name\":" + quoted(method.name()) + ",\"arguments\":" + arguments_json(schema.arguments(), 1) +
               ",\"returns\":" + (schema.returns().empty() ? "{\"kind\":\"None\"}" : type_json(schema.returns()[0].type())) +
               ",\"is_stateful\":" + boolean(is_stateful) +
               ",\"writes_constants\":" + boolean(effects.constants) +
               ",\"mutates_inputs\":" + boolean(effects.inputs) + ",\"is_random\":" + boolean(effects.random) +
               ",\"duration_depends_on_values\":" + boolean(depends_on_values) + "}";
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
