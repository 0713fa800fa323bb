#include <algorithm>
#include <vector>

#include "frontend.h"

namespace multikv {

namespace {

// A row of block_mapping, and which.
struct Pair {
  int64_t src, dst, at;
};

// One of the two tensors, in blocks.
struct Side {
  std::string_view name;
  uint64_t address;
  int64_t num_blocks;

  Side(const Call& call, std::string_view name, const Tensor& tensor, int64_t block_bytes)
      : name(name), address(reinterpret_cast<uintptr_t>(call.data(name, tensor))),
        num_blocks(tensor.numel() * tensor.element_bytes() / block_bytes) {}
};

// The host's tensors may be anywhere on the CPU, the device's are all on one.
void check_tensor(Call& call, std::string_view argument, const Tensor& tensor) {
  if (tensor.is_none() || tensor.device().type != aoti_torch_device_type_cpu() ||
      call.backend().device_type() == aoti_torch_device_type_cpu()) {
    call.check_device(argument, tensor);
  }
  if (!tensor.is_contiguous()) call.fail(argument, "a contiguous tensor", layout_text(tensor));
}

void check_block(const Call& call, const Side& side, int64_t row, int column, int64_t block) {
  if (block >= 0 && block < side.num_blocks) return;
  call.fail_index("block_mapping", std::to_string(row) + ", " + std::to_string(column),
                  join({"a block of ", side.name, " from 0 to ", std::to_string(side.num_blocks - 1)}), block);
}

std::vector<Pair> read_pairs(const Call& call, const Tensor& block_mapping, const Side& src, const Side& dst) {
  const auto* mapping = static_cast<const int64_t*>(call.data("block_mapping", block_mapping));
  std::vector<Pair> pairs(block_mapping.size(0));
  for (int64_t i = 0; i < block_mapping.size(0); ++i) {
    const int64_t* row = mapping + i * block_mapping.stride(0);
    check_block(call, src, i, 0, row[0]);
    check_block(call, dst, i, 1, row[1]);
    pairs[i] = {row[0], row[1], i};
  }
  return pairs;
}

// No pair reads or writes what another one writes. `pairs` are sorted by dst.
void check_overlaps(const Call& call, const std::vector<Pair>& pairs, const Side& src, const Side& dst,
                    uint64_t block_bytes) {
  const auto text = [](int64_t number) { return std::to_string(number); };
  for (size_t i = 1; i < pairs.size(); ++i) {
    const Pair &a = pairs[i - 1], &b = pairs[i];
    if (a.dst != b.dst) continue;
    call.fail("block_mapping", "blocks of dst that differ",
              join({"block ", text(b.dst), " in pairs ", text(a.at), " and ", text(b.at)}));
  }
  const uint64_t src_end = src.address + src.num_blocks * block_bytes;
  const uint64_t dst_end = dst.address + dst.num_blocks * block_bytes;
  if (src.address >= dst_end || dst.address >= src_end) return;
  for (const Pair& reader : pairs) {
    // The first written block that ends after this one begins.
    const uint64_t begin = src.address + reader.src * block_bytes;
    const auto writer = std::partition_point(pairs.begin(), pairs.end(), [&](const Pair& pair) {
      return dst.address + (pair.dst + 1) * block_bytes <= begin;
    });
    if (writer == pairs.end() || dst.address + writer->dst * block_bytes >= begin + block_bytes) continue;
    call.fail("block_mapping", "pairs that read nothing that is written",
              join({"pair ", text(reader.at), ", whose block ", text(reader.src), " of src overlaps block ",
                    text(writer->dst), " of dst, that of pair ", text(writer->at)}));
  }
}

// Neighbours on both sides become one copy.
void merge(const std::vector<Pair>& pairs, int64_t block_bytes, std::vector<SwapRun>& runs) {
  runs.clear();
  for (size_t i = 0; i < pairs.size(); ++i) {
    const bool continues = i > 0 && pairs[i].src == pairs[i - 1].src + 1 && pairs[i].dst == pairs[i - 1].dst + 1;
    if (continues) runs.back().num_bytes += block_bytes;
    else runs.push_back({pairs[i].src * block_bytes, pairs[i].dst * block_bytes, block_bytes,
                         static_cast<int64_t>(i) * block_bytes});
  }
}

}  // namespace

SwapBlocksParams make_swap_blocks_params(Call& call, const Tensor& src, const MutableTensor& dst,
                                         int64_t block_size_in_bytes, const Tensor& block_mapping) {
  SwapBlocksParams p{};
  call.check_on_cpu("block_mapping", block_mapping);  // first: then one of the others is on this backend's device
  check_tensor(call, "src", src);
  check_tensor(call, "dst", dst);
  call.check_at_least("block_size_in_bytes", block_size_in_bytes, 1);
  call.check_dim("block_mapping", block_mapping, 2);
  call.check_dtype("block_mapping", block_mapping, Dtype::kInt64, "");
  call.check_size("block_mapping", block_mapping, 1, 2, "a block of src and one of dst");
  call.check_inner_stride("block_mapping", block_mapping);
  if (block_mapping.size(0) == 0) {
    call.set_nothing_to_do();
    return p;
  }
  const Side from(call, "src", src, block_size_in_bytes), to(call, "dst", dst, block_size_in_bytes);
  std::vector<Pair> pairs = read_pairs(call, block_mapping, from, to);
  const auto by_dst = [](const Pair& a, const Pair& b) { return a.dst != b.dst ? a.dst < b.dst : a.at < b.at; };
  if (!std::is_sorted(pairs.begin(), pairs.end(), by_dst)) std::sort(pairs.begin(), pairs.end(), by_dst);
  check_overlaps(call, pairs, from, to, block_size_in_bytes);

  static thread_local std::vector<SwapRun> runs;  // lives until launch() returns, which is before the next call
  merge(pairs, block_size_in_bytes, runs);
  p.runs = runs.data();
  p.num_runs = static_cast<int64_t>(runs.size());
  p.num_bytes = static_cast<int64_t>(pairs.size()) * block_size_in_bytes;
  p.src = call.data("src", src);
  p.dst = call.mutable_data("dst", dst);
  return p;
}

}  // namespace multikv
