// What a method's code may write to, found without running it.
#pragma once
#include <memory>

namespace torch::jit {
struct Graph;
}

namespace shim {

struct Effects {
  bool state = false;      // the module: attributes, what is inside them, and objects behind interfaces
  bool constants = false;  // values captured in the code, which every copy of the module shares
  bool inputs = false;     // the arguments' memory
  bool random = false;     // none, but it draws random numbers: two equal calls may differ
};

// `graph` is inlined and its first input is `self`. Errs towards "writes": where the code does not tell, it says so.
Effects effects_of(const std::shared_ptr<torch::jit::Graph> &graph);

}  // namespace shim
