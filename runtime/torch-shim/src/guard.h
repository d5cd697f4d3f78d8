// What every exported function needs: exceptions become errors, and devices and strings cross the border.
#pragma once
#include <c10/core/Device.h>
#include <c10/util/Exception.h>
#include <torch/csrc/jit/runtime/jit_exception.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <string>

#include "shim.h"

namespace shim {

// A copy of `text` for shim_string_free; null when there is no memory for it.
inline char *duplicate(const std::string &text) {
  char *copy = static_cast<char *>(std::malloc(text.size() + 1));
  if (copy != nullptr) {
    std::memcpy(copy, text.data(), text.size());
    copy[text.size()] = '\0';
  }
  return copy;
}

inline int fail(ShimError *error, ShimThrown thrown, const std::string &message) {
  error->thrown = thrown;
  error->message = duplicate(message.substr(0, message.find("\nException raised from")));
  return 1;
}

inline std::string raised_text(const torch::jit::JITException &exception) {
  std::string name = exception.getPythonClassName().value_or("");
  std::string text = exception.getOriginalMsg().value_or(exception.what());
  return name.empty() ? text : name + ": " + text;
}

// Runs `body` and turns whatever it throws into an error; what the error means is decided in src/classify.rs.
template <typename Body> int guarded(ShimError *error, Body &&body) noexcept {
  try {
    try {
      body();
      return 0;
    } catch (const torch::jit::JITException &exception) {
      return fail(error, SHIM_THROWN_RAISED, raised_text(exception));
    } catch (const c10::OutOfMemoryError &exception) {
      return fail(error, SHIM_THROWN_OUT_OF_MEMORY, exception.what_without_backtrace());
    } catch (const c10::AcceleratorError &exception) {
      return fail(error, SHIM_THROWN_ACCELERATOR, exception.what_without_backtrace());
    } catch (const c10::Error &exception) {
      return fail(error, SHIM_THROWN_C10, exception.what_without_backtrace());
    } catch (const std::bad_alloc &) {
      return fail(error, SHIM_THROWN_OUT_OF_MEMORY, "the host has no memory left");
    } catch (const std::exception &exception) {
      return fail(error, SHIM_THROWN_STD, exception.what());
    } catch (...) {
      return fail(error, SHIM_THROWN_UNKNOWN, "an exception without a text");
    }
  } catch (...) {
    // There was no memory for the text itself.
    error->thrown = SHIM_THROWN_OUT_OF_MEMORY;
    error->message = nullptr;
    return 1;
  }
}

// -1 is the CPU, else a CUDA index.
inline at::Device device_of(int index) {
  return index < 0 ? at::Device(at::kCPU) : at::Device(at::kCUDA, static_cast<at::DeviceIndex>(index));
}

}  // namespace shim
