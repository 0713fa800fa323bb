// Copies by the copy engines, one after the other on a stream.
#pragma once

#include <cuda_runtime.h>

#include <vector>

#include "vendor/driver.h"

namespace multikv::gpu {

#define MULTIKV_RETURN_IF_FAILED(call) \
  if (const cudaError_t error = (call); error != cudaSuccess) return error

// Makes a device the current one for as long as it lives; both have been used before.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    if (cudaGetDevice(&previous_) == cudaSuccess && previous_ != device) static_cast<void>(cudaSetDevice(device));
  }
  ~CurrentDevice() { static_cast<void>(cudaSetDevice(previous_)); }
  CurrentDevice(const CurrentDevice&) = delete;

 private:
  int previous_ = 0;
};

// Work on stream `after`, from now on, begins when the work that is now on stream `before` has ended. Each is of its
// device. The event is one for each thread and device, made when it is first needed, and kept.
inline cudaError_t wait_for(cudaStream_t before, int before_device, cudaStream_t after, int after_device) {
  static thread_local std::vector<cudaEvent_t> events;
  if (static_cast<int>(events.size()) <= before_device) events.resize(before_device + 1);
  cudaEvent_t& event = events[before_device];
  {
    const CurrentDevice guard(before_device);
    if (event == nullptr) MULTIKV_RETURN_IF_FAILED(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    MULTIKV_RETURN_IF_FAILED(cudaEventRecord(event, before));
  }
  const CurrentDevice guard(after_device);
  return cudaStreamWaitEvent(after, event, 0);
}

// Takes copies one by one and submits them: many at a time where the driver can (`may_batch`), else one by one.
class Copies {
 public:
  Copies(cudaStream_t stream, int device, bool may_batch, bool is_src_access_order_any = false)
      : stream_(stream), device_(device), may_batch_(may_batch && has_batches()), any_order_(is_src_access_order_any) {}

  cudaError_t add(void* dst, const void* src, int64_t num_bytes) {
    if (!may_batch_) return cudaMemcpyAsync(dst, src, num_bytes, cudaMemcpyDefault, stream_);
    dst_[count_] = dst;
    src_[count_] = src;
    sizes_[count_++] = num_bytes;
    return count_ == kMaxBatch ? submit() : cudaSuccess;
  }

  // To be called at the end.
  cudaError_t submit() {
    if (count_ == 0) return cudaSuccess;
    const size_t count = count_;
    count_ = 0;
    if (count == 1) return cudaMemcpyAsync(dst_[0], src_[0], sizes_[0], cudaMemcpyDefault, stream_);
    if (!is_legacy_default(stream_)) return copy_batch(dst_, src_, sizes_, count, any_order_, stream_);
    // The driver takes no batches there. The thread's own default stream takes them; by what these two streams are,
    // work waits for the work that was launched before on the other. The event is for those who wait for the legacy
    // stream alone.
    MULTIKV_RETURN_IF_FAILED(copy_batch(dst_, src_, sizes_, count, any_order_, thread_stream()));
    return wait_for(thread_stream(), device_, stream_, device_);
  }

 private:
  cudaStream_t stream_;
  int device_;
  bool may_batch_, any_order_;
  size_t count_ = 0;
  // For their size not members: of each thread, and of one Copies at a time.
  static inline thread_local void* dst_[kMaxBatch];
  static inline thread_local const void* src_[kMaxBatch];
  static inline thread_local size_t sizes_[kMaxBatch];
};

// Where a GPU finds these bytes of the host's memory, all of which must be pinned, and seen in one piece; else nullptr.
// `memory`: what was last found, which for the next tensor is often the same.
inline void* view_of_host(const void* address, int64_t num_bytes, std::optional<Memory>& memory) {
  const auto begin = reinterpret_cast<uintptr_t>(address), end = begin + num_bytes;
  if (!memory || begin < memory->begin || begin >= memory->end) memory = memory_at(address);
  if (!memory) return nullptr;
  const intptr_t view = memory->view;
  while (memory->end < end) {  // neighbours that were registered one by one
    memory = memory_at(reinterpret_cast<const void*>(memory->end));
    if (!memory || memory->view != view) return nullptr;
  }
  return reinterpret_cast<void*>(begin + view);
}

}  // namespace multikv::gpu
