#include "cpu/isa/cache/mla_entry.h"
#include "cpu/isa/cache/slots.h"
#include "cpu/isa/codec/rotate.h"

namespace multikv::cpu {

template <>
void concat_and_cache_mla_rope_fused<kIsa>(const ConcatAndCacheMlaRopeFusedParams& p, int64_t begin, int64_t end,
                                           Stores stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  EntryWriter writer(p.write, stores);
  const RotateRows rotate_rows = rotate_rows_for(p.write.dtype, p.table_dtype);
  const int64_t element_bytes = num_bytes(p.write.dtype), table_bytes = num_bytes(p.table_dtype);
  const int64_t num_pairs = p.write.rope_size / 2;
  for (int64_t token = begin; token < end; ++token) {
    const char* table_row = static_cast<const char*>(p.cos_sin_cache) +
                            p.positions.at(token) * p.cos_sin_cache_stride_position * table_bytes;
    char* q_pe = static_cast<char*>(p.q_pe) + token * p.q_pe_stride_token * element_bytes;
    char* k_pe = static_cast<char*>(p.k_pe) + token * p.write.k_pe_stride_token * element_bytes;
    rotate_rows(q_pe, p.num_heads, p.q_pe_stride_head * element_bytes, table_row, num_pairs, p.is_neox);
    rotate_rows(k_pe, 1, 0, table_row, num_pairs, p.is_neox);
    for_each_token(p.write.slots, token, token + 1,
                   [&](int64_t token, int64_t block, int64_t offset) { writer.write(token, block, offset); });
  }
}

}  // namespace multikv::cpu
