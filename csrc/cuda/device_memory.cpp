#include "device_memory.h"

#include <torch/csrc/stable/accelerator.h>

namespace dartsfast {

#ifdef DARTSFAST_ON_CUDA

Stream current_stream() {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(torch::stable::accelerator::getCurrentDeviceIndex(), &stream));
  return static_cast<Stream>(stream);
}

Tensor bytes(int64_t count) {
  const torch::stable::Device here(torch::headeronly::DeviceType::CUDA,
                                   torch::stable::accelerator::getCurrentDeviceIndex());
  return torch::stable::empty({count}, ScalarType::Byte, std::nullopt, here);
}

#else

Stream current_stream() { return nullptr; }

Tensor bytes(int64_t count) {
  Tensor found = torch::stable::empty({count}, ScalarType::Byte);
  note(found.const_data_ptr(), count, false);
  return found;
}

#endif

}  // namespace dartsfast
