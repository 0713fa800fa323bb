// How much an op moves: what a backend needs to know to spread the op over threads.
#pragma once

#include <cstdint>

namespace multikv {

// An op is `num_items` independent items. Threads take ranges of items.
struct Work {
  int64_t num_items;
  int64_t bytes_read, bytes_written;  // of one item
  bool is_read_soon = true;           // whether what is written will probably be read before it leaves the caches
};

}  // namespace multikv
