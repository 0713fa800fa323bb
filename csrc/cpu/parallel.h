// Parallel loops on PyTorch's intra-op threads. The number of bytes that an item moves decides how many threads run.
#pragma once

#include <concepts>
#include <cstdint>

namespace multikv::cpu {

// Runs body(begin, end, context) over [0, count), as the template below does.
void parallel_for(int64_t count, int64_t bytes_per_item, void (*body)(int64_t, int64_t, void*), void* context);

// Runs body(begin, end) over [0, count). A grain is the number of items that move kGrainBytes (parallel.cpp), rounded
// down, but at least one item. A loop of at most one grain runs on the calling thread. A longer loop runs on at most as
// many threads as it has grains, where a part of a grain counts as one.
template <std::invocable<int64_t, int64_t> Body>
void parallel_for(int64_t count, int64_t bytes_per_item, const Body& body) {
  const auto call = [](int64_t begin, int64_t end, void* context) { (*static_cast<const Body*>(context))(begin, end); };
  parallel_for(count, bytes_per_item, +call, const_cast<Body*>(&body));
}

// Runs body(begin, end) over `count` items, each smaller than a cache line. The items are split into pieces of 4096
// neighbouring items, which limits false sharing: two threads share at most the cache line between their pieces.
template <std::invocable<int64_t, int64_t> Body>
void parallel_for_small_items(int64_t count, int64_t bytes_per_item, const Body& body) {
  constexpr int64_t kPiece = 4096;
  const int64_t num_pieces = (count + kPiece - 1) / kPiece;
  parallel_for(num_pieces, kPiece * bytes_per_item,
               [&](int64_t begin, int64_t end) { body(begin * kPiece, end * kPiece < count ? end * kPiece : count); });
}

// True where parallel_for would use more than one thread.
bool is_parallel(int64_t count, int64_t bytes_per_item);

}  // namespace multikv::cpu
