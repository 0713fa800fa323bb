#include "cuda/moves/copy_units.cuh"

namespace multikv::gpu {
namespace {

// The slots of the units of pack_layers or unpack_layers.
struct PackedPairs {
  using Entry = int64_t;  // a block id
  Indices block_ids;      // if they are in the memory of the device
  Blocks blocks;          // of the planes
  int64_t first_token;    // of unit 0
  int64_t tokens_per_unit;
  bool is_unpack, are_on_host;

  __device__ SlotPair of(int64_t unit, const Entry* entries, int64_t first_entry) const {
    const int64_t token = first_token + unit * tokens_per_unit;
    const BlockOffset at = split(blocks, token);
    const int64_t id = are_on_host ? entries[at.block - first_entry] : PrefetchedIndex(block_ids, at.block).value();
    const bool is_block = static_cast<uint64_t>(id) < static_cast<uint64_t>(blocks.num_blocks);
    const int64_t slot = is_block ? id * blocks.block_size.signed_value() + at.offset : -1;
    return is_unpack ? SlotPair{token, slot} : SlotPair{slot, token};
  }
};

// Returns the link of a launch, and how the units of the launch lie in staging if staging is in the memory of the host.
template <class Launch>
std::optional<Link> link_of(const PackLayersParams& p, const Launch& launch, const Context& context) {
  std::optional<Link> link = link_of(p.copies, context);
  if (!link) return link;
  const auto& head = launch.head;
  const PlanePair* const items = launch.items();
  const auto staged = [&](const PlanePair& plane) { return p.is_unpack ? plane.src : plane.dst; };
  const SlotStrides& strides = p.is_unpack ? head.slots.src : head.slots.dst;
  const Blocks& blocks = p.is_unpack ? p.copies.src_blocks : p.copies.dst_blocks;
  link->stride_plane = launch.num_items > 1 ? staged(items[1]) - staged(items[0]) : 0;
  link->stride_block = strides.block;
  link->stride_unit = strides.slot * head.pairs.tokens_per_unit;
  link->units_per_block = blocks.block_size.signed_value() / head.pairs.tokens_per_unit;
  return link;
}

// Copies the tokens of the launch's blocks: those in whole units, or the last ones, which do not fill a unit.
template <int kWidth, class Launch>
void launch_tokens(Launch& launch, const PackLayersParams& p, bool is_last, const Context& context) {
  const int64_t block_size = p.cache_blocks().block_size.signed_value();
  const int64_t begin = launch.first_entry * block_size;
  const int64_t end = std::min(begin + launch.num_entries * block_size, p.num_tokens);
  const int64_t num_last = (end - begin) % p.tokens_per_unit;
  auto& head = launch.head;
  head.pairs.first_token = is_last ? end - num_last : begin;
  head.pairs.tokens_per_unit = is_last ? 1 : p.tokens_per_unit;
  head.num_units = is_last ? num_last : (end - begin) / p.tokens_per_unit;
  const std::optional<Link> link = link_of(p, launch, context);
  launch_units<kWidth>(launch, link ? &*link : nullptr, context);
}

cudaError_t launch_group(const PackLayersParams& p, const PlaneGroup<CopyLayout, PlanePair>& group, bool is_last,
                         const Context& context) {
  const auto launch_part = [&]<int kWidth, Arrangement kArrangement>(const UnitPart& part) {
    using Head = CopyHead<PackedPairs, UnitLayout<kWidth, kArrangement>>;
    const Head head{.slots = {p.copies.src_blocks, p.copies.dst_blocks, group.layout.src, group.layout.dst},
                    .unit = UnitLayout<kWidth, kArrangement>::of(part.rows),
                    .pairs = {.block_ids = p.block_ids.indices,
                              .blocks = p.cache_blocks(),
                              .is_unpack = p.is_unpack,
                              .are_on_host = p.are_ids_on_host}};
    const PlanesWork<Head> work{part.planes, group.num_planes, p.block_ids.size};
    const auto launch = [&](auto& filled) { launch_tokens<kWidth>(filled, p, is_last, context); };
    if (p.are_ids_on_host) launch_planes(head, work, [&](int64_t i) { return p.block_ids.indices.at(i); }, launch);
    else launch_planes(head, work, nullptr, launch);
    return cudaGetLastError();
  };
  return with_unit_layouts(group, is_last ? group.layout.token : group.layout.unit, kMaxUnitVectors, launch_part);
}

}  // namespace

template <>
cudaError_t launch(const PackLayersParams& p, const Context& context) {
  for (int64_t i = 0; i < p.copies.planes.num_groups; ++i) {
    const auto& group = p.copies.planes.groups[i];
    if (p.num_units() != 0) MULTIKV_RETURN_IF_FAILED(launch_group(p, group, false, context));
    if (p.num_last_tokens() != 0) MULTIKV_RETURN_IF_FAILED(launch_group(p, group, true, context));
  }
  return cudaSuccess;
}

}  // namespace multikv::gpu
