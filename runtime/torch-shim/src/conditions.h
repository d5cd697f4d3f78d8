// Which conditions of a method's graph are known before it runs.
#pragma once
#include <torch/csrc/jit/ir/ir.h>

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>

namespace shim {

// Branches that the module as it was loaded never takes are not looked at: those of training, such as batch norm's counters,
// those behind flags that the method does not set, and those for arguments that a caller in the code left out. (libtorch's own
// passes would fold them, and drop writes with them that they take for dead.)
class Conditions {
public:
  // `graph` is inlined and its first input is `self`, a module in evaluation mode.
  Conditions(const std::shared_ptr<torch::jit::Graph> &graph, const at::IValue &self);

  // What `value` is whenever the graph runs, if it is a bool of which that is known.
  std::optional<bool> known(torch::jit::Value *value);

private:
  void collect_set_names(torch::jit::Block *block);
  std::optional<at::IValue> object(torch::jit::Value *value);
  std::optional<bool> known_of(torch::jit::Value *value);
  std::optional<bool> is_none(torch::jit::Value *value);

  std::unordered_map<torch::jit::Value *, std::optional<bool>> known_;
  torch::jit::Value *module_;
  at::IValue self_;
  std::set<std::string> set_names_;
};

}  // namespace shim
