#include "cpu/isa/cache/flash_writer.h"
#include "cpu/isa/cache/packed_writer.h"

namespace multikv::cpu {

template <>
void run<kIsa>(const ReshapeAndCacheFlashParams& p, int64_t begin, int64_t end, Stores stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  const FlashWriter key(p, p.key, stores), value(p, p.value, stores);
  for_each_run(p.slots, p.blocks(), begin, end, [&](const TokenRun& run) {
    key.write(run);
    value.write(run);
  });
  finish(stores);
}

template <>
void run<kIsa>(const ReshapeAndCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  PackedWriter key(p, p.key, stores), value(p, p.value, stores);
  for_each_run(p.slots, p.blocks(), begin, end, [&](const TokenRun& run) {
    key.write(run);
    value.write(run);
  });
  finish(stores);
}

}  // namespace multikv::cpu
