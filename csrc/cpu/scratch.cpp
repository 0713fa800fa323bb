#include "cpu/scratch.h"

#include <memory>
#include <new>

namespace multikv::cpu {

char* scratch_of_thread(int64_t num_bytes) {
  struct Free {
    void operator()(char* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
  };
  thread_local std::unique_ptr<char, Free> memory;
  thread_local int64_t capacity = 0;
  if (num_bytes > capacity) {
    memory.reset(static_cast<char*>(::operator new[](num_bytes, std::align_val_t{64})));
    capacity = num_bytes;
  }
  return memory.get();
}

}  // namespace multikv::cpu
