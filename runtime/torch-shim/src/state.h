// Where the state of a module can lie: its objects' attributes and the constants of its code.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace torch::jit {
struct Module;
}

namespace shim {

// A number that changes when a bit changes in a tensor, number or text that hangs on `module` (parameters, buffers, attributes,
// what lies in lists, dicts, tuples and other objects) or that the code of its methods captured. Random generators and objects
// of C++ classes are left out.
uint64_t fingerprint(const torch::jit::Module &module);

// The tensors that the code of `module`'s methods captured.
std::vector<at::Tensor> constant_tensors(const torch::jit::Module &module);

}  // namespace shim
