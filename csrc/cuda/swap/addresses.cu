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

// The ranges of memory in which the sources (or the destinations) of one call lie. There are few ranges, and each is
// looked up in the driver only once.
class Ranges {
 public:
  // Returns the range that holds an address, or nullptr if the driver does not know the address. The range is valid
  // until the next call.
  const Memory* find(const void* address) {
    const auto at = reinterpret_cast<uintptr_t>(address);
    return at - last_.begin < last_.end - last_.begin ? &last_ : find_other(at);
  }

 private:
  const Memory* find_other(uintptr_t at) {
    for (const Memory& range : ranges_) {
      if (at - range.begin < range.end - range.begin) return &(last_ = range);
    }
    const std::optional<Memory> memory = memory_at(reinterpret_cast<const void*>(at));
    if (!memory) return nullptr;
    ranges_.push_back(*memory);
    return &(last_ = *memory);
  }

  Memory last_{};  // the range that the last call found
  std::vector<Memory> ranges_;
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

// Resolves a side that may lie in no range or in several.
[[gnu::noinline]] ResolvedSide resolve_any(Ranges& ranges, const CopySide& copy) {
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

ResolvedSide resolve(Ranges& ranges, std::string_view argument, const void* address, int64_t num_bytes) {
  const Memory* memory = ranges.find(address);
  const auto begin = reinterpret_cast<uintptr_t>(address);
  if (memory != nullptr && memory->end - begin >= static_cast<uintptr_t>(num_bytes)) {
    return {begin + memory->gpu_delta, memory->device};
  }
  return resolve_any(ranges, {argument, static_cast<const char*>(address), num_bytes});
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
  static thread_local std::vector<ResolvedCopy> kept;
  if (static_cast<int64_t>(kept.size()) < p.num_copies) kept.resize(p.num_copies);
  ResolvedCopy* const resolved = kept.data();
  Ranges sources, destinations;
  for (int64_t i = 0; i < p.num_copies; ++i) {
    const SwapCopy& copy = p.copies[i];
    resolved[i].src = resolve(sources, "src_ptrs", copy.src, copy.num_bytes);
    resolved[i].dst = resolve(destinations, "dst_ptrs", copy.dst, copy.num_bytes);
  }
  return {p, resolved};
}

}  // namespace multikv::gpu
