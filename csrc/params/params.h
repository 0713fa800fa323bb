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

// How the indexer's cache stores the scale of a tile: as a float32, as one that is a power of two, or as the exponent
// byte of such a power, four times.
enum class ScaleFormat : uint8_t { kFloat32, kPowerOfTwo, kExponentBytes };

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
  constexpr Indices row(int64_t i) const {
    return {static_cast<const char*>(data) + i * stride * (is_int64 ? 8 : 4), 0, is_int64};
  }
};

// Where tokens go: the slot of each, and the blocks that slots count through.
struct Slots {
  Indices mapping;  // [tokens]
  int64_t num_tokens, num_blocks;
  Divisor block_size;

  constexpr int64_t num_slots() const { return num_blocks * static_cast<int64_t>(block_size.value); }
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
  Slots slots;
  int64_t num_heads;
  Float dtype;
  CacheFormat format;
};

// The same for a packed cache, whose innermost dimension holds `vector_size` elements: of one slot's key
// (key_cache[block, head, d / vector_size, offset, d % vector_size]), or of one dimension's value in neighbouring slots
// (value_cache[block, head, offset / vector_size, d, offset % vector_size]; vector_size = block_size unless
// interleaved).
struct PackedWrite {
  const void* source;  // [tokens, heads, head_size]
  void* cache;         // [blocks, heads, vectors, rows, vector_size]
  const float* scale;
  int64_t scale_stride_head;
  int64_t source_stride_token, source_stride_head;
  int64_t cache_stride_block, cache_stride_head, cache_stride_vector, cache_stride_row;
  Divisor vector_size;
};

struct ReshapeAndCacheParams {
  PackedWrite key, value;
  Slots slots;
  int64_t num_heads, head_size;
  Float dtype;
  CacheFormat format;
};

// fp8_ds_mla, the entry of DeepSeek's sparse attention: 512 codes, a float32 scale for each tile of 128, 64 elements of
// 16 bits.
struct DsMlaEntry {
  static constexpr int kLatentSize = 512, kTileSize = 128, kRopeSize = 64;
  static constexpr int kScalesAt = 512, kRopeAt = 528, kBytes = 656;
};

struct ConcatAndCacheMlaParams {
  const void* kv_c;    // [tokens, latent_size]
  const void* k_pe;    // [tokens, rope_size]
  void* kv_cache;      // [blocks, block_size, latent_size + rope_size], or for ds_mla entries of bytes
  const float* scale;  // nullptr: 1
  int64_t kv_c_stride_token, k_pe_stride_token, kv_cache_stride_block, kv_cache_stride_slot;
  int64_t latent_size, rope_size;
  Slots slots;
  Float dtype;
  CacheFormat format;
  bool is_ds_mla;  // format: that of its codes
};

// Many layers at once.
struct ConcatAndCacheMlaGroupedParams {
  ConcatAndCacheMlaParams first;  // layer 0, without its cache and scale; slots.mapping: [layers, tokens]
  void* const* kv_cache_ptrs;     // [layers]
  const float* kv_scales;         // [layers], or nullptr
  int64_t num_layers, kv_c_stride_layer, k_pe_stride_layer;

  constexpr ConcatAndCacheMlaParams layer(int64_t i) const {
    ConcatAndCacheMlaParams p = first;
    p.kv_c = static_cast<const char*>(p.kv_c) + i * kv_c_stride_layer * num_bytes(p.dtype);
    p.k_pe = static_cast<const char*>(p.k_pe) + i * k_pe_stride_layer * num_bytes(p.dtype);
    p.kv_cache = kv_cache_ptrs[i];
    p.scale = kv_scales == nullptr ? nullptr : kv_scales + i;
    p.slots.mapping = p.slots.mapping.row(i);
    return p;
  }
};

struct ConcatAndCacheMlaRopeFusedParams {
  ConcatAndCacheMlaParams write;  // of what k_pe holds when it is rotated
  Indices positions;              // [tokens]
  void* q_pe;                     // [tokens, num_heads, rope_size]
  void* k_pe;                     // [tokens, rope_size]: write.k_pe
  const void* cos_sin_cache;      // [num_positions, rope_size]: cosines, then sines
  int64_t q_pe_stride_token, q_pe_stride_head, cos_sin_cache_stride_position;
  int64_t num_heads, num_positions;
  Float table_dtype;
  bool is_neox;  // rotates the pairs (i, i + rope_size / 2); else (2i, 2i + 1)
};

// Any dtype: counted in bytes.
struct ConcatMlaQParams {
  const void* ql_nope;  // [tokens, heads, nope_bytes]
  const void* q_pe;     // [tokens, heads, rope_bytes]
  void* q_out;          // [tokens, heads, nope_bytes + rope_bytes]
  int64_t ql_nope_stride_token_bytes, ql_nope_stride_head_bytes;
  int64_t q_pe_stride_token_bytes, q_pe_stride_head_bytes;
  int64_t q_out_stride_token_bytes, q_out_stride_head_bytes;
  int64_t num_tokens, num_heads, nope_bytes, rope_bytes;
};

// Rows that lie dense on two sides, repeated over up to eight strided dimensions, the first of them innermost. Sizes
// and strides count bytes where both sides are of one type, else elements.
struct Rows {
  static constexpr int kMaxDims = 8;
  int64_t row_size;
  int64_t num_rows;  // product of size[0 .. num_dims)
  int num_dims;
  int64_t size[kMaxDims];
  int64_t src_stride[kMaxDims];
  int64_t dst_stride[kMaxDims];
};

struct ConvertFp8Params {
  const void* src;
  void* dst;
  Rows rows;  // in elements
  float scale;
  Float dtype;         // of the side that is not fp8
  CacheFormat format;  // of the side that is
  bool to_fp8;
};

// Which entry each output row takes: sequences of rows, and the blocks they lie in.
struct Sequences {
  Indices block_table;  // [num_sequences, blocks_per_sequence]
  Indices cu_seq_lens;  // [num_bounds]
  Indices seq_starts;   // [num_sequences]
  int64_t num_sequences;
  int64_t num_bounds;  // num_sequences + 1, or num_sequences where the last one ends with the output
  int64_t blocks_per_sequence, num_tokens, num_blocks;
  Divisor block_size;
};

struct CpGatherCacheParams {
  const void* src_cache;  // [blocks, block_size, entry]
  void* dst;              // [tokens, entry]
  int64_t src_stride_block_bytes, src_stride_slot_bytes, dst_stride_token_bytes;
  Rows entry;  // in bytes
  Sequences sequences;
};

struct GatherAndMaybeDequantCacheParams {
  CpGatherCacheParams gather;  // entry: one row, as src_cache has it
  const float* scale;
  Float dtype;         // of dst
  CacheFormat format;  // kSame: bytes are copied
};

struct CpGatherAndUpconvertFp8KvCacheParams {
  const void* src_cache;  // [device_blocks, block_size, DsMlaEntry]
  void* dst;              // [tokens, 576], bfloat16
  int64_t src_stride_block_bytes, src_stride_slot_bytes, dst_stride_token;
  CacheFormat format;
  Sequences sequences;  // num_blocks: logical ones
  // Rows that lie elsewhere: host_row_ids.data == nullptr: none do.
  const void* host_cache;  // [host_rows, DsMlaEntry]
  int64_t host_stride_row_bytes, num_host_rows, num_device_blocks;
  Indices host_row_ids, device_row_ids;  // [num_blocks * block_size]
};

// A block of the indexer's cache: block_size * head_size codes, then block_size * head_size / quant_block_size scales
// of 4 bytes.
struct IndexerKQuantAndCacheParams {
  const void* k;   // [tokens, head_size]
  void* kv_cache;  // [blocks, bytes of a block]
  int64_t k_stride_token, kv_cache_stride_block_bytes;
  int64_t head_size, quant_block_size;
  Slots slots;
  Float dtype;
  CacheFormat format;
  ScaleFormat scale_format;
};

struct CpGatherIndexerKQuantCacheParams {
  const void* kv_cache;  // [blocks, bytes of a block]
  void* dst_k;           // [tokens, k_bytes]
  void* dst_scale;       // [tokens, scale_bytes]
  int64_t kv_cache_stride_block_bytes, dst_k_stride_token_bytes, dst_scale_stride_token_bytes;
  int64_t k_bytes, scale_bytes;
  Sequences sequences;
};

// Neighbouring blocks that stay neighbours, as one copy; counted in blocks.
struct SwapRun {
  int64_t src_block, dst_block, num_blocks;
  int64_t begin;  // blocks of all runs before this one
};

struct SwapLayer {
  const void* src;
  void* dst;
};

// The same runs in every layer. What the pointers point to lives until launch() returns.
struct SwapBlocksParams {
  const SwapLayer* layers;
  const SwapRun* runs;
  int64_t num_layers, num_runs, num_blocks;  // num_blocks: of all runs, in one layer
  int64_t longest_run;                       // in blocks
  int64_t block_bytes;
  int64_t src_bytes, dst_bytes;    // what the mapping reaches of each tensor, from its start
  int32_t src_device, dst_device;  // -1: the host
};

// Copies between addresses of any memory.
struct SwapCopy {
  const void* src;
  void* dst;
  int64_t num_bytes;
  int64_t begin_bytes;  // bytes of all copies before this one
};

struct SwapBlocksBatchParams {
  const SwapCopy* copies;  // as the layers of SwapBlocksParams
  int64_t num_copies, num_bytes;
  bool is_src_access_order_any;
};

// Launch parameters of a GPU kernel: bytes that are copied as they stand, at most 4 KB.
template <class Params>
concept LaunchParams = std::is_trivially_copyable_v<Params> && sizeof(Params) <= 4096;

}  // namespace multikv
