#include "cpu/isa/cache/mla_entry.h"
#include "cpu/isa/cache/token_runs.h"
#include "cpu/isa/codec/rotate.h"
#include "params/mla_rope_params.h"

namespace multikv::cpu {

template <>
void run<kIsa>(const ConcatAndCacheMlaRopeFusedParams& p, int64_t begin, int64_t end, Stores stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  EntryWriter writer(p.write, stores);
  const RotateRows rotate_rows = rotate_rows_for(p.write.dtype, p.table_dtype);
  const int64_t num_pairs = p.write.rope_size / 2;
  for (int64_t token = begin; token < end; ++token) {
    const char* table_row = p.cos_sin_cache.row(p.positions.at(token));
    rotate_rows(p.q_pe.head(token, 0), p.num_heads, p.q_pe.stride_head_bytes, table_row, num_pairs, p.is_neox);
    rotate_rows(p.write.k_pe.row(token), 1, 0, table_row, num_pairs, p.is_neox);
    for_each_token(p.write.slots, p.write.blocks(), token, token + 1,
                   [&](int64_t token, BlockOffset at) { writer.write(token, at); });
  }
}

}  // namespace multikv::cpu
