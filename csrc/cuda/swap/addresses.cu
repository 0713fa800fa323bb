#include "cuda/swap/addresses.h"

#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace multikv::gpu {
namespace {

// The ranges of memory in which the addresses of one call lie. There are few ranges, and each is looked up only once.
class Ranges {
 public:
  // Returns the range that holds an address, or nullptr if the driver does not know the address.
  const Memory* find(const void* address) {
    const auto at = reinterpret_cast<uintptr_t>(address);
    if (last_ < ranges_.size() && ranges_[last_].begin <= at && at < ranges_[last_].end) return &ranges_[last_];
    for (last_ = 0; last_ < ranges_.size(); ++last_) {
      if (ranges_[last_].begin <= at && at < ranges_[last_].end) return &ranges_[last_];
    }
    const std::optional<Memory> memory = memory_at(address);
    if (!memory) return nullptr;
    ranges_.push_back(*memory);
    return &ranges_.back();
  }

 private:
  std::vector<Memory> ranges_;
  size_t last_ = 0;
};

// Whether this process can read the byte at an address. process_vm_readv() returns EFAULT for memory that would fault;
// if it fails for another reason, the byte counts as readable.
bool is_readable(const void* address) {
  char byte = 0;
  const iovec to{&byte, 1}, from{const_cast<void*>(address), 1};
  return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 1 || errno != EFAULT;
}

[[noreturn]] void fail(std::string_view argument, int64_t copy, std::string_view got) {
  throw std::runtime_error("swap_blocks_batch: " + std::string(argument) + ": expected addresses of memory, got " +
                           std::string(got) + " (copy " + std::to_string(copy) +
                           " of those left when neighbours are merged)");
}

ResolvedSide resolve(Ranges& ranges, std::string_view argument, int64_t i, const void* address, int64_t num_bytes) {
  const auto* begin = static_cast<const char*>(address);
  const Memory* memory = ranges.find(begin);
  if (memory == nullptr) {  // the address is of pageable host memory, or invalid
    if (!is_readable(begin) || !is_readable(begin + num_bytes - 1)) fail(argument, i, "one that no memory is at");
    return {};
  }
  const ResolvedSide side{reinterpret_cast<uintptr_t>(begin) + memory->gpu_delta, memory->device};
  const auto end = reinterpret_cast<uintptr_t>(begin) + num_bytes;
  while (memory->end < end) {  // the copy goes on in a range that was registered or mapped separately
    const intptr_t delta = memory->gpu_delta;
    memory = ranges.find(reinterpret_cast<const void*>(memory->end));
    if (memory == nullptr || memory->gpu_delta != delta || memory->device != side.device)
      fail(argument, i, "one whose memory ends before the copy");
  }
  return side;
}

}  // namespace

void* gpu_address_of_host(const void* address, int64_t num_bytes, std::optional<Memory>& memory) {
  const auto begin = reinterpret_cast<uintptr_t>(address), end = begin + num_bytes;
  if (!memory || begin < memory->begin || begin >= memory->end) memory = memory_at(address);
  if (!memory) return nullptr;
  const intptr_t delta = memory->gpu_delta;
  while (memory->end < end) {  // the bytes go on in a range that was registered separately
    memory = memory_at(reinterpret_cast<const void*>(memory->end));
    if (!memory || memory->gpu_delta != delta) return nullptr;
  }
  return reinterpret_cast<void*>(begin + delta);
}

ResolvedSwapBatch resolve_addresses(const SwapBlocksBatchParams& p) {
  static thread_local std::vector<ResolvedCopy> resolved;
  resolved.clear();
  Ranges ranges;
  for (int64_t i = 0; i < p.num_copies; ++i) {
    const SwapCopy& copy = p.copies[i];
    const ResolvedSide src = resolve(ranges, "src_ptrs", i, copy.src, copy.num_bytes);
    const ResolvedSide dst = resolve(ranges, "dst_ptrs", i, copy.dst, copy.num_bytes);
    resolved.push_back({src, dst});
  }
  return {p, resolved.data()};
}

}  // namespace multikv::gpu
