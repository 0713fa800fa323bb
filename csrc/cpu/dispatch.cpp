// From the CPU's features to the table of kernels that serves it, and from each op to its kernel.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"
#include "cpu/launch.h"
#include "cpu/parallel.h"

namespace multikv::cpu {

namespace {

struct Kernels {
  const char* name;
  bool (*is_supported)();
  decltype(&reshape_and_cache_flash<Isa::kBaseline>) reshape_and_cache_flash;
  decltype(&reshape_and_cache<Isa::kBaseline>) reshape_and_cache;
  decltype(&concat_and_cache_mla<Isa::kBaseline>) concat_and_cache_mla;
  decltype(&concat_and_cache_mla_rope_fused<Isa::kBaseline>) concat_and_cache_mla_rope_fused;
  decltype(&concat_mla_q<Isa::kBaseline>) concat_mla_q;
  decltype(&indexer_k_quant_and_cache<Isa::kBaseline>) indexer_k_quant_and_cache;
  decltype(&cp_gather_cache<Isa::kBaseline>) cp_gather_cache;
  decltype(&gather_and_maybe_dequant_cache<Isa::kBaseline>) gather_and_maybe_dequant_cache;
  decltype(&cp_gather_and_upconvert_fp8_kv_cache<Isa::kBaseline>) cp_gather_and_upconvert_fp8_kv_cache;
  decltype(&cp_gather_indexer_k_quant_cache<Isa::kBaseline>) cp_gather_indexer_k_quant_cache;
  decltype(&convert_fp8<Isa::kBaseline>) convert_fp8;
  decltype(&swap_blocks<Isa::kBaseline>) swap_blocks;
  decltype(&swap_blocks_batch<Isa::kBaseline>) swap_blocks_batch;
};

template <Isa isa>
constexpr Kernels kernels_of(const char* name, bool (*is_supported)()) {
  return {
      .name = name,
      .is_supported = is_supported,
      .reshape_and_cache_flash = &reshape_and_cache_flash<isa>,
      .reshape_and_cache = &reshape_and_cache<isa>,
      .concat_and_cache_mla = &concat_and_cache_mla<isa>,
      .concat_and_cache_mla_rope_fused = &concat_and_cache_mla_rope_fused<isa>,
      .concat_mla_q = &concat_mla_q<isa>,
      .indexer_k_quant_and_cache = &indexer_k_quant_and_cache<isa>,
      .cp_gather_cache = &cp_gather_cache<isa>,
      .gather_and_maybe_dequant_cache = &gather_and_maybe_dequant_cache<isa>,
      .cp_gather_and_upconvert_fp8_kv_cache = &cp_gather_and_upconvert_fp8_kv_cache<isa>,
      .cp_gather_indexer_k_quant_cache = &cp_gather_indexer_k_quant_cache<isa>,
      .convert_fp8 = &convert_fp8<isa>,
      .swap_blocks = &swap_blocks<isa>,
      .swap_blocks_batch = &swap_blocks_batch<isa>,
  };
}

// From the plainest to the best. The features named here are the flags in cmake/CpuIsa.cmake.
constexpr Kernels kTables[] = {
    kernels_of<Isa::kBaseline>("baseline", [] { return true; }),
#ifdef MULTIKV_X86_ISAS
    kernels_of<Isa::kAvx2>("avx2",
                           [] {
                             return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                                    __builtin_cpu_supports("f16c");
                           }),
    kernels_of<Isa::kAvx512>("avx512",
                             [] {
                               return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                                      __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
                             }),
#endif
};

const Kernels* best() {
  const Kernels* result = &kTables[0];
  for (const auto& table : kTables) {
    if (table.is_supported()) result = &table;
  }
  return result;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> table{best()};
  return table;
}

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

Stores stores_for(int64_t bytes_written) {
  return bytes_written >= streaming_crossover_bytes() ? Stores::kStreaming : Stores::kOrdinary;
}

// Runs body(begin, end) over the tokens of a cache write.
template <class Body>
void for_tokens(const Slots& slots, int64_t bytes_of_token, const Body& body) {
  if (is_parallel(slots.num_tokens, bytes_of_token) && has_duplicate_slots(slots)) {
    body(0, slots.num_tokens);
  } else {
    parallel_for(slots.num_tokens, bytes_of_token, body);
  }
}

// Runs body(begin, end) over `count` items so small that threads share no line of them.
template <class Body>
void for_pieces(int64_t count, int64_t bytes_of_item, const Body& body) {
  constexpr int64_t kPiece = 4096;
  parallel_for((count + kPiece - 1) / kPiece, kPiece * bytes_of_item,
               [&](int64_t begin, int64_t end) { body(begin * kPiece, std::min(end * kPiece, count)); });
}

struct EntryBytes {
  int64_t read, written;
};
EntryBytes bytes_of(const ConcatAndCacheMlaParams& p) {
  const int64_t elements = p.latent_size + p.rope_size;
  return {elements * num_bytes(p.dtype), p.is_ds_mla ? DsMlaEntry::kBytes : elements * num_bytes(p.format, p.dtype)};
}

}  // namespace

const char* isa_name() { return kernels().name; }

bool set_isa(const char* name) {
  for (const auto& table : kTables) {
    if (std::strcmp(table.name, name) != 0 || !table.is_supported()) continue;
    chosen().store(&table, std::memory_order_relaxed);
    return true;
  }
  return false;
}

const char* supported_isa_names() {
  static const std::string joined = [] {
    std::string names;
    for (const auto& table : kTables) {
      if (table.is_supported()) (names += names.empty() ? "" : ",") += table.name;
    }
    return names;
  }();
  return joined.c_str();
}

void launch(const ReshapeAndCacheFlashParams& p) {
  const int64_t elements = p.num_heads * (p.key.head_size + p.value.head_size);
  const int64_t bytes_written = elements * num_bytes(p.format, p.dtype);
  const int64_t bytes_moved = elements * num_bytes(p.dtype) + bytes_written;
  const Stores stores = stores_for(p.slots.num_tokens * bytes_written);
  for_tokens(p.slots, bytes_moved,
             [&](int64_t begin, int64_t end) { kernels().reshape_and_cache_flash(p, begin, end, stores); });
}

void launch(const ReshapeAndCacheParams& p) {
  const int64_t elements = 2 * p.num_heads * p.head_size;
  const int64_t bytes_written = elements * num_bytes(p.format, p.dtype);
  const Stores stores = stores_for(p.slots.num_tokens * bytes_written);
  for_tokens(p.slots, elements * num_bytes(p.dtype) + bytes_written,
             [&](int64_t begin, int64_t end) { kernels().reshape_and_cache(p, begin, end, stores); });
}

void launch(const ConcatAndCacheMlaParams& p) {
  const EntryBytes bytes = bytes_of(p);
  const Stores stores = stores_for(p.slots.num_tokens * bytes.written);
  for_tokens(p.slots, bytes.read + bytes.written,
             [&](int64_t begin, int64_t end) { kernels().concat_and_cache_mla(p, begin, end, stores); });
}

void launch(const ConcatAndCacheMlaRopeFusedParams& p) {
  const EntryBytes bytes = bytes_of(p.write);
  const Stores stores = stores_for(p.write.slots.num_tokens * bytes.written);
  const int64_t bytes_rotated = 2 * (p.num_heads + 1) * p.write.rope_size * num_bytes(p.write.dtype);
  for_tokens(p.write.slots, bytes.read + bytes.written + bytes_rotated,
             [&](int64_t begin, int64_t end) { kernels().concat_and_cache_mla_rope_fused(p, begin, end, stores); });
}

void launch(const ConcatAndCacheMlaGroupedParams& p) {
  const EntryBytes bytes = bytes_of(p.first);
  const int64_t num_tokens = p.first.slots.num_tokens, count = p.num_layers * num_tokens;
  const Stores stores = stores_for(count * bytes.written);
  const auto body = [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t layer = begin / num_tokens, first = layer * num_tokens;
      const int64_t stop = std::min(end, first + num_tokens);
      kernels().concat_and_cache_mla(p.layer(layer), begin - first, stop - first, stores);
      begin = stop;
    }
  };
  bool has_duplicates = false;
  if (is_parallel(count, bytes.read + bytes.written)) {
    const int64_t mappings = p.first.slots.mapping.stride == 0 ? 1 : p.num_layers;
    for (int64_t i = 0; i < mappings && !has_duplicates; ++i) has_duplicates = has_duplicate_slots(p.layer(i).slots);
  }
  if (has_duplicates) body(0, count);
  else parallel_for(count, bytes.read + bytes.written, body);
}

void launch(const ConcatMlaQParams& p) {
  const int64_t bytes = p.nope_bytes + p.rope_bytes, count = p.num_tokens * p.num_heads;
  const Stores stores = stores_for(count * bytes);
  parallel_for(count, 2 * bytes, [&](int64_t begin, int64_t end) { kernels().concat_mla_q(p, begin, end, stores); });
}

void launch(const IndexerKQuantAndCacheParams& p) {
  const int64_t bytes_written = p.head_size + p.head_size / p.quant_block_size * 4;
  const Stores stores = stores_for(p.slots.num_tokens * bytes_written);
  for_tokens(p.slots, p.head_size * num_bytes(p.dtype) + bytes_written,
             [&](int64_t begin, int64_t end) { kernels().indexer_k_quant_and_cache(p, begin, end, stores); });
}

void launch(const CpGatherCacheParams& p) {
  const int64_t entry_bytes = p.entry.num_rows * p.entry.row_size;
  const Stores stores = stores_for(p.sequences.num_tokens * entry_bytes);
  parallel_for(p.sequences.num_tokens, 2 * entry_bytes,
               [&](int64_t begin, int64_t end) { kernels().cp_gather_cache(p, begin, end, stores); });
}

void launch(const GatherAndMaybeDequantCacheParams& p) {
  if (p.format == CacheFormat::kSame) return launch(p.gather);
  const int64_t elements = p.gather.entry.row_size, num_tokens = p.gather.sequences.num_tokens;
  const int64_t bytes_written = elements * num_bytes(p.dtype);
  const Stores stores = stores_for(num_tokens * bytes_written);
  parallel_for(num_tokens, elements + bytes_written,
               [&](int64_t begin, int64_t end) { kernels().gather_and_maybe_dequant_cache(p, begin, end, stores); });
}

void launch(const CpGatherAndUpconvertFp8KvCacheParams& p) {
  constexpr int64_t kBytesWritten = (DsMlaEntry::kLatentSize + DsMlaEntry::kRopeSize) * 2;
  const Stores stores = stores_for(p.sequences.num_tokens * kBytesWritten);
  parallel_for(p.sequences.num_tokens, DsMlaEntry::kBytes + kBytesWritten, [&](int64_t begin, int64_t end) {
    kernels().cp_gather_and_upconvert_fp8_kv_cache(p, begin, end, stores);
  });
}

void launch(const CpGatherIndexerKQuantCacheParams& p) {
  const int64_t row_bytes = p.k_bytes + p.scale_bytes;
  const Stores stores = stores_for(p.sequences.num_tokens * row_bytes);
  parallel_for(p.sequences.num_tokens, 2 * row_bytes,
               [&](int64_t begin, int64_t end) { kernels().cp_gather_indexer_k_quant_cache(p, begin, end, stores); });
}

void launch(const ConvertFp8Params& p) {
  const int64_t count = p.rows.num_rows * p.rows.row_size, bytes_moved = num_bytes(p.dtype) + 1;
  const Stores stores = stores_for(count * (p.to_fp8 ? 1 : num_bytes(p.dtype)));
  for_pieces(count, bytes_moved, [&](int64_t begin, int64_t end) { kernels().convert_fp8(p, begin, end, stores); });
}

// Blocks that move elsewhere are rarely read soon: they bypass the caches where other outputs, so many times as large,
// would.
constexpr int64_t kRarelyReadSoon = 16;

void launch(const SwapBlocksParams& p) {
  const int64_t layer_bytes = p.num_blocks * p.block_bytes, num_bytes = p.num_layers * layer_bytes;
  const Stores stores = stores_for(kRarelyReadSoon * num_bytes);
  for_pieces(num_bytes, 2, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t layer = begin / layer_bytes, first = layer * layer_bytes;
      const int64_t stop = std::min(end, first + layer_bytes);
      kernels().swap_blocks(p, layer, begin - first, stop - first, stores);
      begin = stop;
    }
  });
}

namespace {
std::atomic<BatchOfGpu> batch_of_gpu{nullptr};
}

void set_batch_of_gpu(BatchOfGpu copy) { batch_of_gpu.store(copy); }

void launch(const SwapBlocksBatchParams& p) {
  if (const BatchOfGpu copy = batch_of_gpu.load()) {
    char error[512] = "";
    const bool is_done = copy(&p, error, sizeof error);
    if (error[0] != '\0') throw std::runtime_error(error);
    if (is_done) return;
  }
  const Stores stores = stores_for(kRarelyReadSoon * p.num_bytes);
  for_pieces(p.num_bytes, 2, [&](int64_t begin, int64_t end) { kernels().swap_blocks_batch(p, begin, end, stores); });
}

}  // namespace multikv::cpu
