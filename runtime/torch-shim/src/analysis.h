// What can be told about a module without running it.
#pragma once
#include <string>

namespace torch::jit {
struct Module;
}

namespace shim {

// Methods with their schemas, parameter and buffer sizes, devices of constants, and for each method whether it may write to the
// module or to its constants (`is_stateful`, `writes_constants`) or to its own arguments (`mutates_inputs`), and whether anything
// but its arguments' shapes decides how long it runs (`duration_depends_on_values`). JSON; src/schema.rs has the shape.
std::string describe(const torch::jit::Module &module);

}  // namespace shim
