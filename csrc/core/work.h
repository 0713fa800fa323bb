// How much memory an op reads and writes. A backend uses it to distribute the op over threads.
#pragma once

#include <cstdint>

namespace multikv {

// An op consists of `num_items` independent items. A thread processes a range of items.
struct Work {
  int64_t num_items;
  int64_t bytes_read, bytes_written;  // per item
  bool is_read_soon = true;           // whether the output will probably be read while it is still in the CPU's caches
};

}  // namespace multikv
