// Tensors over foreign memory, copies between devices, and the calling thread's stream.

#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/script.h>

#include "guard.h"

using shim::device_of;
using shim::guarded;

int shim_tensor_from_blob(void *data, const int64_t *shape, size_t rank, int32_t scalar_type, void (*release)(void *),
                          void *context, void **out, ShimError *error) {
  bool owned = false;
  int status = guarded(error, [&] {
    auto options = at::TensorOptions().dtype(static_cast<at::ScalarType>(scalar_type));
    auto free = [release, context](void *) { release(context); };
    owned = true;  // from here on libtorch calls the deleter, even when it throws
    *out = new at::Tensor(torch::from_blob(data, at::IntArrayRef(shape, rank), free, options));
  });
  if (status != 0 && !owned) release(context);
  return status;
}

int shim_tensor_empty(const int64_t *shape, size_t rank, int32_t scalar_type, void **out, ShimError *error) {
  return guarded(error, [&] {
    auto options = at::TensorOptions().dtype(static_cast<at::ScalarType>(scalar_type));
    *out = new at::Tensor(at::empty(at::IntArrayRef(shape, rank), options));
  });
}

int shim_tensor_to_host(const void *tensor, int copy, void **out, ShimError *error) {
  return guarded(error, [&] {
    c10::InferenceMode guard;
    const auto &source = *static_cast<const at::Tensor *>(tensor);
    auto dense = source.layout() == at::kStrided ? source : source.to_dense();
    if (dense.is_conj()) dense = dense.resolve_conj();
    if (dense.is_neg()) dense = dense.resolve_neg();
    auto host = dense.is_cpu() ? dense : dense.to(at::kCPU);
    auto flat = host.contiguous();
    if (copy != 0 && flat.is_alias_of(source)) flat = flat.clone();
    *out = new at::Tensor(std::move(flat));
  });
}

int shim_tensor_to_device(const void *tensor, int device, void **out, ShimError *error) {
  return guarded(error, [&] {
    c10::InferenceMode guard;
    *out = new at::Tensor(static_cast<const at::Tensor *>(tensor)->to(device_of(device)));
  });
}

int shim_tensor_view(const void *tensor, ShimTensorView *out, ShimError *error) {
  return guarded(error, [&] {
    const auto &value = *static_cast<const at::Tensor *>(tensor);
    auto sizes = value.sizes();
    size_t size_bytes = static_cast<size_t>(value.numel()) * value.element_size();
    *out = {static_cast<int32_t>(value.scalar_type()), sizes.data(), sizes.size(), size_bytes, value.data_ptr()};
  });
}

int shim_thread_use_stream(int device, ShimError *error) {
  return guarded(error, [&] {
    c10::impl::VirtualGuardImpl guard(at::kCUDA);
    guard.setDevice(device_of(device));
    guard.exchangeStream(guard.getStreamFromGlobalPool(device_of(device)));
  });
}

int shim_device_synchronize(int device, ShimError *error) {
  return guarded(error, [&] {
    c10::impl::VirtualGuardImpl guard(at::kCUDA);
    guard.synchronizeStream(guard.getStream(device_of(device)));
  });
}
