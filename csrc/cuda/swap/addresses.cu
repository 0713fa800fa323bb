#include "cuda/swap/addresses.h"

#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <sstream>
#include <stdexcept>
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

// One side of a copy, which the front end may have joined from adjacent copies.
struct CopySide {
  std::string_view argument;
  const char* begin;
  int64_t num_bytes;

  // `address` is where the memory of the copy is not as expected. The text shows it directly after `got`.
  [[noreturn]] void fail(std::string_view expected, std::string_view got, const void* address) const {
    std::ostringstream text;
    text << "swap_blocks_batch: " << argument << ": expected " << expected << ", got " << got << address << " ("
         << num_bytes << " bytes from " << static_cast<const void*>(begin) << " on; adjacent copies are joined)";
    throw std::runtime_error(text.str());
  }

  void check_readable(const char* address) const {
    if (!is_readable(address)) fail("mapped addresses", "", address);
  }
};

ResolvedSide resolve(Ranges& ranges, const CopySide& copy) {
  const Memory* memory = ranges.find(copy.begin);
  if (memory == nullptr) {  // the address is of pageable host memory, or invalid
    copy.check_readable(copy.begin);
    copy.check_readable(copy.begin + copy.num_bytes - 1);
    return {};
  }
  const auto begin = reinterpret_cast<uintptr_t>(copy.begin), end = begin + copy.num_bytes;
  const ResolvedSide side{begin + memory->gpu_delta, memory->device};
  while (memory->end < end) {  // the copy goes on in a range that was registered or mapped separately
    const intptr_t delta = memory->gpu_delta;
    const auto* range_end = reinterpret_cast<const void*>(memory->end);
    memory = ranges.find(range_end);
    if (memory == nullptr || memory->gpu_delta != delta || memory->device != side.device)
      copy.fail("copies within one memory mapping", "a copy that leaves its mapping at ", range_end);
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
    const ResolvedSide src = resolve(ranges, {"src_ptrs", static_cast<const char*>(copy.src), copy.num_bytes});
    const ResolvedSide dst = resolve(ranges, {"dst_ptrs", static_cast<const char*>(copy.dst), copy.num_bytes});
    resolved.push_back({src, dst});
  }
  return {p, resolved.data()};
}

}  // namespace multikv::gpu
