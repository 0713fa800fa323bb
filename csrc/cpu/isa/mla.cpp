#include "cpu/isa/cache/mla_entry.h"
#include "cpu/isa/cache/slots.h"

namespace multikv::cpu {

template <>
void concat_and_cache_mla<kIsa>(const ConcatAndCacheMlaParams& p, int64_t begin, int64_t end, Stores stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  EntryWriter writer(p, stores);
  for_each_token(p.slots, begin, end,
                 [&](int64_t token, int64_t block, int64_t offset) { writer.write(token, block, offset); });
}

template <>
void concat_mla_q<kIsa>(const ConcatMlaQParams& p, int64_t begin, int64_t end, Stores stores) {
  LineWriter lines(stores);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t token = row / p.num_heads, head = row - token * p.num_heads;
    char* to = static_cast<char*>(p.q_out) + token * p.q_out_stride_token_bytes + head * p.q_out_stride_head_bytes;
    lines.copy_piece(
        to,
        static_cast<const char*>(p.ql_nope) + token * p.ql_nope_stride_token_bytes + head * p.ql_nope_stride_head_bytes,
        p.nope_bytes);
    lines.copy_piece(
        to + p.nope_bytes,
        static_cast<const char*>(p.q_pe) + token * p.q_pe_stride_token_bytes + head * p.q_pe_stride_head_bytes,
        p.rope_bytes);
  }
}

}  // namespace multikv::cpu
