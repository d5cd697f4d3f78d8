// Whether the shapes of a method's arguments tell how long it runs.
#pragma once
#include <torch/csrc/jit/ir/ir.h>

#include <memory>

namespace shim {

// Whether how often `graph` does what, or how much of it, may depend on the values of its arguments. `graph` is inlined, its first
// input is `self`, a module in evaluation mode, and it writes to neither the module nor its constants. Errs towards "depends".
bool duration_depends_on_values(const std::shared_ptr<torch::jit::Graph> &graph, const at::IValue &self);

}  // namespace shim
