#include "cpu/isa/cache/mla_entry.h"
#include "cpu/isa/cache/token_runs.h"
#include "params/mla_params.h"

namespace multikv::cpu {

template <>
void run<kIsa>(const ConcatAndCacheMlaParams& p, int64_t begin, int64_t end, Stores stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  EntryWriter writer(p, stores);
  for_each_token(p.slots, p.blocks(), begin, end, [&](int64_t token, BlockOffset at) { writer.write(token, at); });
}

// The items are the tokens of all layers, layer by layer.
template <>
void run<kIsa>(const ConcatAndCacheMlaGroupedParams& p, int64_t begin, int64_t end, Stores stores) {
  const int64_t num_tokens = p.first.slots.num_tokens;
  while (begin < end) {
    const int64_t layer = begin / num_tokens, first = layer * num_tokens;
    const int64_t stop = end < first + num_tokens ? end : first + num_tokens;
    run<kIsa>(p.layer(layer), begin - first, stop - first, stores);
    begin = stop;
  }
}

template <>
void run<kIsa>(const ConcatMlaQParams& p, int64_t begin, int64_t end, Stores stores) {
  LineWriter lines(stores);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t token = item / p.num_heads, head = item - token * p.num_heads;
    char* to = p.q_out.head(token, head);
    lines.copy_piece(to, p.ql_nope.head(token, head), p.ql_nope.head_bytes);
    lines.copy_piece(to + p.ql_nope.head_bytes, p.q_pe.head(token, head), p.q_pe.head_bytes);
  }
}

}  // namespace multikv::cpu
