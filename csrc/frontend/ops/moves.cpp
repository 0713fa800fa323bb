#include "frontend/check/moves.h"

#include <numeric>

#include "frontend/check/planes.h"
#include "frontend/check/strided.h"
#include "params/moves_params.h"

namespace multikv {

namespace {

bool is_on_cpu(const Tensor& tensor) { return tensor.device().type == aoti_torch_device_type_cpu(); }
bool is_on_host_of_gpu(const Call& call, const Tensor& tensor) {
  return is_on_cpu(tensor) && call.backend().device_type() != aoti_torch_device_type_cpu();
}

int32_t device_of(const Tensor& tensor) { return is_on_cpu(tensor) ? -1 : tensor.device().index; }

void check_element_bytes(const Call& call, std::string_view argument, const Tensor& tensor, const Tensor& other,
                         std::string_view other_name) {
  if (tensor.element_bytes() == other.element_bytes()) return;
  call.fail(argument, join({"elements of ", count_text(other.element_bytes(), "byte"), " like ", other_name}),
            dtype_text(tensor));
}

// -- pack_layers and unpack_layers ------------------------------------------------------------------------------------

// The heads of the planes that are copied.
struct Heads {
  int64_t start, count;
};

Heads check_heads(const Call& call, const Tensor& staging, const Tensor& plane, int64_t head_start) {
  const int64_t heads = staging.size(3), all = plane.size(2);
  if (heads == 0) call.fail("staging", "at least 1 (heads) in dimension 3", shape_text(staging));
  check_at_least(call, "head_start", head_start, 0);
  if (heads > all) {
    call.fail("staging", join({"at most ", text(all), " (heads of caches) in dimension 3"}), shape_text(staging));
  }
  if (head_start > all - heads) {
    call.fail("head_start", join({"at most ", text(all - heads), " (heads of caches - heads of staging)"}),
              text(head_start));
  }
  return {head_start, heads};
}

void check_staging(Call& call, const Tensor& staging, int64_t num_planes, const Tensor& plane, bool is_written) {
  if (staging.is_none() || !is_on_host_of_gpu(call, staging)) call.check_device("staging", staging);
  check_dim(call, "staging", staging, 5);
  check_element_bytes(call, "staging", staging, plane, "caches[0]");
  check_size(call, "staging", staging, 2, num_planes, "planes of caches");
  check_size(call, "staging", staging, 4, plane.size(3), "head size of caches");
  check_inner_stride(call, "staging", staging);
  if (is_written) check_not_expanded(call, "staging", staging);
}

// Returns the number of tokens to copy; `num_tokens` is the argument.
int64_t check_num_tokens(const Call& call, const Tensor& staging, const IndexList& ids, int64_t block_size,
                         int64_t num_tokens) {
  check_at_least(call, "num_tokens", num_tokens, -1);
  const int64_t all = wrapping_product(ids.size, block_size);
  if (num_tokens > all) {
    call.fail("num_tokens", join({"at most ", text(all), " (elements of block_ids * block size)"}), text(num_tokens));
  }
  const int64_t count = num_tokens < 0 ? all : num_tokens;
  if (count > wrapping_product(staging.size(0), staging.size(1))) {
    call.fail("staging", join({"space for ", count_text(count, "token"), " in dimensions 0 and 1"}),
              shape_text(staging));
  }
  return count;
}

// A plane and staging, as the two sides of a copy.
struct PackSides {
  const Tensor &plane, &staging;
  Heads heads;
  bool is_unpack;

  StridedDim dim(int64_t size, int64_t plane_dim, int64_t staging_dim) const {
    const int64_t plane_stride = stride_bytes(plane, plane_dim), staging_stride = stride_bytes(staging, staging_dim);
    return is_unpack ? StridedDim{size, staging_stride, plane_stride} : StridedDim{size, plane_stride, staging_stride};
  }
  StridedRows rows(int64_t num_tokens) const {
    const StridedDim dims[] = {dim(plane.size(3), 3, 4), dim(heads.count, 2, 3), dim(num_tokens, 1, 1)};
    return strided_rows(dims, plane.element_bytes());
  }
  CopyLayout layout(int64_t tokens_per_unit) const {
    const SlotStrides cache{stride_bytes(plane, 0), stride_bytes(plane, 1)};
    const SlotStrides staged{stride_bytes(staging, 0), stride_bytes(staging, 1)};
    return {is_unpack ? staged : cache, is_unpack ? cache : staged, rows(tokens_per_unit), rows(1)};
  }
};

char* staging_data(const Call& call, const Tensor& staging) {
  return is_on_host_of_gpu(call, staging) ? host_data(call, "staging", staging) : data(call, "staging", staging);
}
char* staging_data(const Call& call, const MutableTensor& staging) {
  char* address = mutable_data(call, "staging", staging);
  return is_on_host_of_gpu(call, staging) ? host_data(call, "staging", staging) : address;
}

PlaneCollector<CopyLayout, PlanePair>& copy_collector() {
  static thread_local PlaneCollector<CopyLayout, PlanePair> collector;
  collector.clear();
  return collector;
}

// Sets the addresses and strides of all planes. Staging is one side of each of them.
template <class Planes, class Staging>
void set_pack_copies(const Call& call, PackLayersParams& p, const Planes& caches, const Staging& staging,
                     const Heads& heads) {
  auto& collector = copy_collector();
  char* const staged = staging_data(call, staging);
  for (int64_t i = 0; i < caches.size(); ++i) {
    const PackSides sides{caches[i], staging, heads, p.is_unpack};
    char* const plane = plane_data(call, "caches", i, caches[i]) + heads.start * stride_bytes(caches[i], 2);
    char* const at = staged + i * stride_bytes(staging, 2);
    collector.add(sides.layout(p.tokens_per_unit), p.is_unpack ? PlanePair{at, plane} : PlanePair{plane, at});
  }
  PlaneCopies& copies = p.copies;
  copies.planes = collector.groups();
  copies.token_bytes = caches.size() * heads.count * size_bytes(staging, 4);
}

template <class Planes, class Staging>
PackLayersParams make_params(Call& call, const Planes& caches, const Tensor& block_ids, const Staging& staging,
                             int64_t num_tokens, int64_t head_start) {
  PackLayersParams p{};
  p.is_unpack = std::same_as<Staging, Tensor>;
  check_planes(call, "caches", caches,
               {.min_dim = 4,
                .may_have_more_dims = false,
                .has_one_block_size = true,
                .has_one_entry = true,
                .is_written = p.is_unpack});
  const Blocks blocks = blocks_of(call, "caches[0]", caches[0]);
  IndexLists lists(call);
  p.block_ids = lists.add("block_ids", block_ids);
  p.are_ids_on_host = lists.are_on_host();
  check_staging(call, staging, caches.size(), caches[0], !p.is_unpack);
  const Heads heads = check_heads(call, staging, caches[0], head_start);
  const int64_t block_size = blocks.block_size.signed_value();
  p.num_tokens = check_num_tokens(call, staging, p.block_ids, block_size, num_tokens);
  p.block_ids.size = p.num_tokens / block_size + (p.num_tokens % block_size != 0);
  check_entries(call, "block_ids", lists, p.block_ids, "block", blocks.num_blocks);
  if (p.num_tokens == 0 || staging.size(4) == 0) {
    call.set_nothing_to_do();
    return p;
  }
  const Blocks staged{staging.size(0), Divisor::of(staging.size(1))};
  p.copies.src_blocks = p.is_unpack ? staged : blocks;
  p.copies.dst_blocks = p.is_unpack ? blocks : staged;
  p.copies.src_device = device_of(p.is_unpack ? static_cast<const Tensor&>(staging) : caches[0]);
  p.copies.dst_device = device_of(p.is_unpack ? caches[0] : static_cast<const Tensor&>(staging));
  p.tokens_per_unit = std::gcd(block_size, staging.size(1));
  if (p.is_unpack) p.slots = {p.block_ids.indices, p.block_ids.size};
  set_pack_copies(call, p, caches, staging, heads);
  return p;
}

// -- move_tokens ------------------------------------------------------------------------------------------------------

// Checks the devices of a list. If may_be_on_host is true, all its planes may be in the memory of the host, although
// the call is on a GPU.
template <class Planes>
void check_list_device(Call& call, std::string_view argument, const Planes& planes, bool may_be_on_host) {
  const bool is_on_host = may_be_on_host && !planes[0].is_none() && is_on_host_of_gpu(call, planes[0]);
  for (int64_t i = 0; i < planes.size(); ++i) {
    if (!is_on_host || planes[i].is_none()) {
      check_plane_device(call, argument, i, planes[i]);
    } else if (!is_on_cpu(planes[i])) {
      call.fail(plane_name(argument, i), join({"a CPU tensor like ", argument, "[0]"}),
                device_text(planes[i].device()));
    }
  }
}

// Checks the devices of both lists. One of the lists may be in the memory of the host, although the call is on a GPU.
void check_devices(Call& call, const TensorList& src, const MutableTensorList& dst) {
  const auto is_on_device = [&](const Tensor& first) { return !first.is_none() && !is_on_host_of_gpu(call, first); };
  if (is_on_device(src[0]) || !is_on_device(dst[0])) {
    check_list_device(call, "src", src, false);
    check_list_device(call, "dst", dst, true);
  } else {
    check_list_device(call, "dst", dst, false);
    check_list_device(call, "src", src, true);
  }
}

// Checks that plane `index` of dst has tokens like those of src.
void check_same_tokens(const Call& call, int64_t index, const Tensor& src, const Tensor& dst) {
  const std::string name = plane_name("dst", index), other = plane_name("src", index);
  if (dst.dim() != src.dim()) {
    call.fail(name, join({count_text(src.dim(), "dimension"), " like ", other}), shape_text(dst));
  }
  for (int64_t d = 2; d < dst.dim(); ++d) {
    check_size(call, name, dst, d, src.size(d), [&] { return "token size of " + other; });
  }
  check_element_bytes(call, name, dst, src, other);
}

void check_move_planes(Call& call, const TensorList& src, const MutableTensorList& dst) {
  check_num_planes(call, "src", src.size());
  if (dst.size() != src.size()) {
    call.fail("dst", count_text(src.size(), "tensor") + ", one for each of src", text(dst.size()));
  }
  check_devices(call, src, dst);
  PlanesRule rule{.has_one_block_size = true};
  for (int64_t i = 0; i < src.size(); ++i) check_plane_shape(call, "src", i, src[i], src[0], rule);
  rule.is_written = true;
  for (int64_t i = 0; i < dst.size(); ++i) check_plane_shape(call, "dst", i, dst[i], dst[0], rule);
  for (int64_t i = 0; i < dst.size(); ++i) check_same_tokens(call, i, src[i], dst[i]);
}

void check_slot_pairs(const Call& call, const IndexLists& lists, const MoveTokensParams& p) {
  if (!lists.are_checked()) return;
  const HostIndices src = lists.on_host(p.src_slots), dst = lists.on_host(p.dst_slots);
  const int64_t src_end = p.copies.src_blocks.num_slots(), dst_end = p.copies.dst_blocks.num_slots();
  for (int64_t i = 0; i < p.num_tokens(); ++i) {
    if (src[i] < 0 || dst[i] < 0) continue;
    check_entry(call, "src_slots", i, -1, "slot", src[i], src_end);
    check_entry(call, "dst_slots", i, -1, "slot", dst[i], dst_end);
  }
}

char* address_of(const Call& call, std::string_view argument, int64_t i, const Tensor& plane) {
  return is_on_host_of_gpu(call, plane) ? host_data(call, plane_name(argument, i), plane)
                                        : plane_data(call, argument, i, plane);
}
char* address_of(const Call& call, std::string_view argument, int64_t i, const MutableTensor& plane) {
  char* address = plane_data(call, argument, i, plane);
  return is_on_host_of_gpu(call, plane) ? host_data(call, plane_name(argument, i), plane) : address;
}

void set_move_copies(const Call& call, MoveTokensParams& p, const TensorList& src, const MutableTensorList& dst) {
  auto& collector = copy_collector();
  for (int64_t i = 0; i < src.size(); ++i) {
    const int64_t unit = src[i].element_bytes();
    const StridedRows rows = strided_rows(call, plane_name("src", i), {src[i], 2}, {dst[i], 2}, unit, "tokens of ");
    const CopyLayout layout{{stride_bytes(src[i], 0), stride_bytes(src[i], 1)},
                            {stride_bytes(dst[i], 0), stride_bytes(dst[i], 1)},
                            rows,
                            rows};
    const int64_t bytes = wrapping_product(rows.num_rows, rows.row_size);
    if (bytes == 0) continue;
    p.copies.token_bytes += bytes;
    collector.add(layout, {address_of(call, "src", i, src[i]), address_of(call, "dst", i, dst[i])});
  }
  p.copies.planes = collector.groups();
}

// -- compact_cache ----------------------------------------------------------------------------------------------------

void check_keep(Call& call, const MutableTensorList& caches, const Tensor& keep) {
  call.check_device("keep", keep);
  const int64_t dim = keep.dim();
  if (dim < 1 || dim > 3) call.fail("keep", "1 to 3 dimensions", shape_text(keep));
  if (dim > 1) check_size(call, "keep", keep, dim - 2, caches[0].size(2), "heads of caches");
  if (dim > 2 && (keep.size(0) == 0 || caches.size() % keep.size(0) != 0)) {
    call.fail("keep", join({"a divisor of ", text(caches.size()), " (planes of caches) in dimension 0"}),
              shape_text(keep));
  }
}

KeptTokens make_kept_tokens(Call& call, const MutableTensorList& caches, const Tensor& block_table, const Tensor& keep,
                            const Tensor& keep_offsets, const OptionalTensor& dst_start) {
  KeptTokens kept{};
  kept.block_table = indices_of(call, "block_table", block_table, 2);
  kept.num_sequences = block_table.size(0);
  kept.blocks_per_sequence = block_table.size(1);
  check_keep(call, caches, keep);
  const int64_t dim = keep.dim();
  kept.keep = indices_of(call, "keep", keep, dim);
  kept.keep.stride = dim > 1 ? keep.stride(dim - 2) : 0;
  kept.keep_stride_group = dim > 2 ? keep.stride(0) : 0;
  kept.planes_per_group = caches.size() / (dim > 2 ? keep.size(0) : 1);
  kept.is_per_group = dim > 2;
  kept.is_per_head = dim > 1;
  kept.num_elements = keep.size(dim - 1);
  kept.keep_offsets = indices_of(call, "keep_offsets", keep_offsets, 1);
  check_size(call, "keep_offsets", keep_offsets, 0, kept.num_sequences + 1, "rows of block_table + 1");
  if (dst_start.has_value()) {
    kept.dst_start = indices_of(call, "dst_start", *dst_start, 1);
    check_size(call, "dst_start", *dst_start, 0, kept.num_sequences, "rows of block_table");
  }
  return kept;
}

void set_compact_planes(const Call& call, CompactCacheParams& p, const MutableTensorList& caches) {
  static thread_local PlaneCollector<CompactLayout> collector;
  collector.clear();
  for (int64_t i = 0; i < caches.size(); ++i) {
    const MutableTensor& plane = caches[i];
    const CompactLayout layout{
        {stride_bytes(plane, 0), stride_bytes(plane, 1)}, stride_bytes(plane, 2), size_bytes(plane, 3)};
    if (layout.head_bytes == 0) continue;
    p.token_bytes += p.num_heads * layout.head_bytes;
    collector.add(layout, {plane_data(call, "caches", i, plane), i});
  }
  p.planes = collector.groups();
}

}  // namespace

PackLayersParams make_pack_layers_params(Call& call, const TensorList& caches, const Tensor& block_ids,
                                         const MutableTensor& staging, int64_t num_tokens, int64_t head_start) {
  return make_params(call, caches, block_ids, staging, num_tokens, head_start);
}

PackLayersParams make_unpack_layers_params(Call& call, const Tensor& staging, const MutableTensorList& caches,
                                           const Tensor& block_ids, int64_t num_tokens, int64_t head_start) {
  return make_params(call, caches, block_ids, staging, num_tokens, head_start);
}

MoveTokensParams make_move_tokens_params(Call& call, const TensorList& src, const MutableTensorList& dst,
                                         const Tensor& src_slots, const Tensor& dst_slots, bool overlap) {
  constexpr int64_t kMostOverlapping = 4096;
  MoveTokensParams p{};
  check_move_planes(call, src, dst);
  p.copies.src_blocks = blocks_of(call, "src[0]", src[0]);
  p.copies.dst_blocks = blocks_of(call, "dst[0]", dst[0]);
  p.copies.src_device = device_of(src[0]);
  p.copies.dst_device = device_of(dst[0]);
  IndexLists lists(call);
  p.src_slots = lists.add("src_slots", src_slots);
  p.dst_slots = lists.add("dst_slots", dst_slots);
  p.are_slots_on_host = lists.are_on_host();
  check_size(call, "dst_slots", dst_slots, 0, p.src_slots.size, "elements of src_slots");
  p.overlap = overlap;
  if (overlap && p.num_tokens() > kMostOverlapping) {
    call.fail("src_slots", join({"at most ", text(kMostOverlapping), " elements with overlap"}), shape_text(src_slots));
  }
  check_slot_pairs(call, lists, p);
  p.slots = {p.dst_slots.indices, p.num_tokens()};
  if (p.num_tokens() != 0) set_move_copies(call, p, src, dst);
  if (p.copies.planes.num_planes == 0) call.set_nothing_to_do();
  return p;
}

CompactCacheParams make_compact_cache_params(Call& call, const MutableTensorList& caches, const Tensor& block_table,
                                             const Tensor& keep, const Tensor& keep_offsets,
                                             const OptionalTensor& dst_start) {
  CompactCacheParams p{};
  check_planes(call, "caches", caches,
               {.min_dim = 4, .may_have_more_dims = false, .has_one_block_size = true, .is_written = true});
  p.blocks = blocks_of(call, "caches[0]", caches[0]);
  p.num_heads = caches[0].size(2);
  for (int64_t i = 1; i < caches.size(); ++i) {
    if (caches[i].size(2) != p.num_heads) {
      check_size(call, plane_name("caches", i), caches[i], 2, p.num_heads, "heads of caches[0]");
    }
  }
  p.kept = make_kept_tokens(call, caches, block_table, keep, keep_offsets, dst_start);
  check_kept_tokens(call, p.kept, p.blocks, p.num_heads, caches.size() / p.kept.planes_per_group);
  if (p.kept.num_sequences != 0 && p.kept.num_elements != 0 && p.num_heads != 0) set_compact_planes(call, p, caches);
  if (p.planes.num_planes == 0) call.set_nothing_to_do();
  return p;
}

}  // namespace multikv
