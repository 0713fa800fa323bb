// Copies by the copy engines, in order on a stream.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "cuda/launch.h"
#include "vendor/driver.h"

namespace multikv::gpu {

// Makes a device the current one for as long as the object lives. The process must have used both devices before.
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

// Lets later work on stream `after` wait for the work that is now on stream `before`. Each stream belongs to the device
// that is named with it. A thread keeps an event for each device.
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

inline cudaError_t is_capturing(cudaStream_t stream, bool& result) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(stream, &status);
  result = status != cudaStreamCaptureStatusNone;
  return error;
}

// Submits copies in batches where the driver has them and `may_batch` allows them, else one by one. A thread may have
// only one such object at a time.
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

  // Submits the copies that add() has not submitted yet.
  cudaError_t submit() {
    if (count_ == 0) return cudaSuccess;
    const size_t count = count_;
    count_ = 0;
    if (count == 1) return cudaMemcpyAsync(dst_[0], src_[0], sizes_[0], cudaMemcpyDefault, stream_);
    if (!is_legacy_default(stream_)) return copy_batch(dst_, src_, sizes_, count, any_order_, stream_);
    // The driver refuses batches on the legacy default stream, so that the thread's own default stream takes them. The
    // two streams wait for each other's earlier work by definition; the event serves those who wait for the legacy
    // stream alone.
    MULTIKV_RETURN_IF_FAILED(copy_batch(dst_, src_, sizes_, count, any_order_, thread_stream()));
    return wait_for(thread_stream(), device_, stream_, device_);
  }

 private:
  cudaStream_t stream_;
  int device_;
  bool may_batch_, any_order_;
  size_t count_ = 0;
  // Too large for the stack, and so the thread's.
  static inline thread_local void* dst_[kMaxBatch];
  static inline thread_local const void* src_[kMaxBatch];
  static inline thread_local size_t sizes_[kMaxBatch];
};

}  // namespace multikv::gpu
