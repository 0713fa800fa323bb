// Submits copies to the copy engines, in stream order.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cuda/launch.h"
#include "vendor/driver.h"

namespace multikv::gpu {

// Makes a device the current one for as long as the object lives. The process must have used both this device and the
// current one before, because cudaSetDevice() initialises a device.
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

// Makes later work on stream `after` wait for the work that is already on stream `before`. before_device and
// after_device are the devices of the two streams. Each thread reuses one event per device.
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

// Submits copies in batches if the driver has batches and `may_batch` is set, else one by one. An engine starts on a
// batch when all of it is submitted, which takes the host half a microsecond per copy. So the first batch is small, and
// the next ones, which are submitted while the engine copies, grow. A thread may have only one Copies at a time,
// because the arrays of the batch are thread-local.
class Copies {
 public:
  Copies(cudaStream_t stream, int device, bool may_batch, bool is_src_access_order_any = false)
      : stream_(stream), device_(device), may_batch_(may_batch && has_batches()), any_order_(is_src_access_order_any) {}

  cudaError_t add(void* dst, const void* src, int64_t num_bytes) {
    if (!may_batch_) return cudaMemcpyAsync(dst, src, num_bytes, cudaMemcpyDefault, stream_);
    dst_[count_] = dst;
    src_[count_] = src;
    sizes_[count_++] = num_bytes;
    if (count_ < batch_size_) return cudaSuccess;
    batch_size_ = std::min<size_t>(4 * batch_size_, kMaxBatch);
    return submit();
  }

  // Submits the copies that add() has not submitted yet.
  cudaError_t submit() {
    if (count_ == 0) return cudaSuccess;
    const size_t count = count_;
    count_ = 0;
    if (count == 1) return cudaMemcpyAsync(dst_[0], src_[0], sizes_[0], cudaMemcpyDefault, stream_);
    if (!is_legacy_default(stream_)) return copy_batch(dst_, src_, sizes_, count, any_order_, stream_);
    // The driver refuses batches on the legacy default stream, so that they go to the per-thread default stream
    // instead. CUDA implicitly orders the work on the two streams. But a synchronisation with the legacy stream is not
    // work, and waits only for what is on that stream. So wait_for() puts a wait for the batch on the legacy stream.
    MULTIKV_RETURN_IF_FAILED(copy_batch(dst_, src_, sizes_, count, any_order_, thread_stream()));
    return wait_for(thread_stream(), device_, stream_, device_);
  }

 private:
  cudaStream_t stream_;
  int device_;
  bool may_batch_, any_order_;
  size_t count_ = 0, batch_size_ = std::min(16, kMaxBatch);
  // Thread-local, because together the arrays are too large for the stack.
  static inline thread_local void* dst_[kMaxBatch];
  static inline thread_local const void* src_[kMaxBatch];
  static inline thread_local size_t sizes_[kMaxBatch];
};

}  // namespace multikv::gpu
