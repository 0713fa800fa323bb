// What the front end hands to a backend: plain structs, checked once, free of torch.
// Strides count elements unless their name says bytes.
#pragma once

#include <cstdint>
#include <type_traits>

namespace multikv {

// The dtype of the tensors a caller hands in.
enum class Float : uint8_t { kFloat32, kFloat16, kBFloat16 };

// How a cache stores them. kSame: as they came, bit for bit.
enum class CacheFormat : uint8_t { kSame, kE4M3FN, kE5M2, kE4M3FNUZ, kE5M2FNUZ };

constexpr int64_t num_bytes(Float dtype) { return dtype == Float::kFloat32 ? 4 : 2; }
constexpr int64_t num_bytes(CacheFormat format, Float dtype) {
  return format == CacheFormat::kSame ? num_bytes(dtype) : 1;
}

// A divisor of 64-bit numbers whose reciprocal was computed once; Divisor.divide of the backends multiplies.
struct Divisor {
  uint64_t value;
  uint64_t reciprocal;  // floor((2^64 - 1) / value)

  static constexpr Divisor of(int64_t value) {
    const auto unsigned_value = static_cast<uint64_t>(value);
    return {unsigned_value, ~uint64_t{0} / unsigned_value};
  }

  // `high_product(a, b)` gives the upper 64 bits of a * b, which every compiler spells differently.
  // The estimate is the quotient or one less, for every x.
  template <class HighProduct>
  constexpr uint64_t divide(uint64_t x, HighProduct high_product) const {
    const uint64_t estimate = high_product(x, reciprocal);
    return estimate + (x - estimate * value >= value);
  }
};

// Indices as the caller keeps them: int32 or int64, rows `stride` elements apart. data == nullptr: not given.
struct Indices {
  const void* data;
  int64_t stride;
  bool is_int64;

  constexpr int64_t at(int64_t i) const {
    return is_int64 ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
  constexpr int64_t at(int64_t row, int64_t column) const { return at(row * stride + column); }
};

// One of the two tensors that a cache write moves: key into key_cache, value into value_cache.
struct CacheWrite {
  const void* source;  // [tokens, heads, head_size]
  void* cache;         // [blocks, block_size, heads, head_size]
  const float* scale;  // one, or one per head; unused by kSame
  int64_t scale_stride_head;
  int64_t source_stride_token, source_stride_head;
  int64_t cache_stride_block, cache_stride_slot, cache_stride_head;
  int64_t head_size;
};

struct ReshapeAndCacheFlashParams {
  CacheWrite key, value;
  Indices slot_mapping;
  int64_t num_tokens, num_heads, num_blocks;
  Divisor block_size;
  Float dtype;
  CacheFormat format;

  constexpr int64_t num_slots() const { return num_blocks * static_cast<int64_t>(block_size.value); }
};

// The bytes of one token's entry: `row_bytes` in one piece, repeated over up to four strided dimensions.
struct Entry {
  static constexpr int kMaxDims = 4;
  int64_t row_bytes;
  int64_t num_rows;  // product of size[0 .. num_dims)
  int num_dims;
  int64_t size[kMaxDims];
  int64_t src_stride_bytes[kMaxDims];
  int64_t dst_stride_bytes[kMaxDims];
};

struct CpGatherCacheParams {
  const void* src_cache;  // [blocks, block_size, entry]
  void* dst;              // [tokens, entry]
  int64_t src_stride_block_bytes, src_stride_slot_bytes, dst_stride_token_bytes;
  Entry entry;
  Indices block_table;  // [sequences, blocks_per_sequence]
  Indices cu_seq_lens;  // [sequences + 1]
  Indices seq_starts;   // [sequences]
  int64_t num_sequences, blocks_per_sequence, num_tokens, num_blocks;
  Divisor block_size;
};

// Launch parameters of a GPU kernel: bytes that are copied as they stand, at most 4 KB.
template <class Params>
concept LaunchParams = std::is_trivially_copyable_v<Params> && sizeof(Params) <= 4096;

static_assert(LaunchParams<ReshapeAndCacheFlashParams>);
static_assert(LaunchParams<CpGatherCacheParams>);

}  // namespace multikv
