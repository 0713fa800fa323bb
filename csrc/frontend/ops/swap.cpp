#include "frontend/ops/ops.h"
#include "frontend/ops/swap_mapping.h"

namespace multikv {

namespace {

// The host's tensors may be anywhere on the CPU; the op runs on the device of src, or of dst if src is the host's.
void check_tensor(Call& call, const SwapSide& side, const Tensor& tensor, const Tensor& first) {
  const auto fail = [&](std::string_view expected, std::string_view got) { call.fail(side.text(), expected, got); };
  if (tensor.is_none()) fail("a tensor", "None");
  if (side.index > 0) {
    if (!(tensor.device() == first.device())) {
      fail(join({"device ", device_text(first.device()), " like ", side.name, "[0]"}), device_text(tensor.device()));
    }
  } else if (tensor.device().type != aoti_torch_device_type_cpu()) {
    call.check_peer_device(side.name, tensor);
  } else if (call.backend().device_type() == aoti_torch_device_type_cpu()) {
    call.check_device(side.name, tensor);
  }
  if (!tensor.is_contiguous()) fail("a contiguous tensor", layout_text(tensor));
}

int32_t device_of(const Tensor& tensor) {
  return tensor.device().type == aoti_torch_device_type_cpu() ? -1 : tensor.device().index;
}

SwapSide side_of(const Call& call, std::string_view name, int64_t index, const Tensor& tensor, int64_t block_bytes) {
  SwapSide side{name, index, 0, tensor.numel() * tensor.element_bytes() / block_bytes};
  side.address = reinterpret_cast<uintptr_t>(index < 0 ? call.data(name, tensor) : call.data(side.text(), tensor));
  return side;
}

void check_mapping(const Call& call, const Tensor& block_mapping) {
  call.check_dim("block_mapping", block_mapping, 2);
  call.check_dtype("block_mapping", block_mapping, Dtype::kInt64, "");
  call.check_size("block_mapping", block_mapping, 1, 2, "a block of src and one of dst");
  call.check_inner_stride("block_mapping", block_mapping);
}

// `index(i)`: that of layer i in the lists, -1 where there are none.
template <class Source, class Target, class Index>
SwapBlocksParams make_params(Call& call, int64_t num_layers, Source src, Target dst, Index index, int64_t block_bytes,
                             const Tensor& block_mapping) {
  SwapBlocksParams p{};
  for (int64_t i = 0; i < num_layers; ++i) check_tensor(call, {"src", index(i), 0, 0}, src(i), src(0));
  for (int64_t i = 0; i < num_layers; ++i) check_tensor(call, {"dst", index(i), 0, 0}, dst(i), dst(0));
  call.check_at_least("block_size_in_bytes", block_bytes, 1);
  check_mapping(call, block_mapping);
  if (block_mapping.size(0) == 0 || num_layers == 0) {
    call.set_nothing_to_do();
    return p;
  }
  static thread_local std::vector<SwapSides> sides;
  static thread_local std::vector<SwapLayer> layers;  // lives until launch() returns, which is before the next call
  sides.clear();
  for (int64_t i = 0; i < num_layers; ++i) {
    sides.push_back(
        {side_of(call, "src", index(i), src(i), block_bytes), side_of(call, "dst", index(i), dst(i), block_bytes)});
  }
  const SwapRuns made = make_swap_runs(call, sides, block_bytes, block_mapping);
  layers.clear();
  for (int64_t i = 0; i < num_layers; ++i) {
    const void* from = reinterpret_cast<const void*>(sides[i].src.address);
    layers.push_back({from, dst(i).mutable_data()});  // after all checks: this is where a copy on write would copy
  }
  p.layers = layers.data();
  p.runs = made.runs;
  p.num_layers = num_layers;
  p.num_runs = made.num_runs;
  p.longest_run = made.longest;
  p.num_blocks = block_mapping.size(0);
  p.block_bytes = block_bytes;
  p.src_bytes = made.src_end * block_bytes;
  p.dst_bytes = made.dst_end * block_bytes;
  p.src_device = device_of(src(0));
  p.dst_device = device_of(dst(0));
  return p;
}

const int64_t* numbers(const Call& call, std::string_view argument, const Tensor& tensor) {
  call.check_on_cpu(argument, tensor);
  call.check_dim(argument, tensor, 1);
  call.check_dtype(argument, tensor, Dtype::kInt64, "");
  call.check_inner_stride(argument, tensor);
  return static_cast<const int64_t*>(call.data(argument, tensor));
}

}  // namespace

SwapBlocksParams make_swap_blocks_params(Call& call, const Tensor& src, const MutableTensor& dst,
                                         int64_t block_size_in_bytes, const Tensor& block_mapping) {
  call.check_on_cpu("block_mapping", block_mapping);  // first: then one of the others is on this backend's device
  return make_params(
      call, 1, [&](int64_t) -> const Tensor& { return src; }, [&](int64_t) -> const MutableTensor& { return dst; },
      [](int64_t) { return int64_t{-1}; }, block_size_in_bytes, block_mapping);
}

SwapBlocksParams make_swap_blocks_layers_params(Call& call, const TensorList& src, const MutableTensorList& dst,
                                                int64_t block_size_in_bytes, const Tensor& block_mapping) {
  call.check_on_cpu("block_mapping", block_mapping);
  if (dst.size() != src.size()) {
    call.fail("dst", std::to_string(src.size()) + " tensors, one for each of src", std::to_string(dst.size()));
  }
  return make_params(
      call, src.size(), [&](int64_t i) -> const Tensor& { return src[i]; },
      [&](int64_t i) -> const MutableTensor& { return dst[i]; }, [](int64_t i) { return i; }, block_size_in_bytes,
      block_mapping);
}

SwapBlocksBatchParams make_swap_blocks_batch_params(Call& call, const Tensor& src_ptrs, const MutableTensor& dst_ptrs,
                                                    const Tensor& sizes, bool is_src_access_order_any) {
  const int64_t* from = numbers(call, "src_ptrs", src_ptrs);
  const int64_t* to = numbers(call, "dst_ptrs", dst_ptrs);
  const int64_t* bytes = numbers(call, "sizes", sizes);
  const int64_t count = src_ptrs.size(0);
  call.check_size("dst_ptrs", dst_ptrs, 0, count, "that of src_ptrs");
  call.check_size("sizes", sizes, 0, count, "that of src_ptrs");
  static thread_local std::vector<SwapCopy> copies;
  copies.clear();
  int64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (bytes[i] == 0) continue;
    const auto check = [&](std::string_view argument, bool is_good, std::string_view expected, int64_t got) {
      if (!is_good) call.fail(join({argument, "[", std::to_string(i), "]"}), expected, std::to_string(got));
    };
    check("sizes", bytes[i] > 0, "a number of bytes", bytes[i]);
    check("src_ptrs", from[i] != 0, "an address", from[i]);
    check("dst_ptrs", to[i] != 0, "an address", to[i]);
    if (!copies.empty()) {  // neighbours on both sides become one copy
      SwapCopy& last = copies.back();
      if (reinterpret_cast<int64_t>(last.src) + last.num_bytes == from[i] &&
          reinterpret_cast<int64_t>(last.dst) + last.num_bytes == to[i]) {
        last.num_bytes += bytes[i];
        sum += bytes[i];
        continue;
      }
    }
    copies.push_back({reinterpret_cast<const void*>(from[i]), reinterpret_cast<void*>(to[i]), bytes[i], sum});
    sum += bytes[i];
  }
  if (copies.empty()) call.set_nothing_to_do();
  return {copies.data(), static_cast<int64_t>(copies.size()), sum, is_src_access_order_any};
}

}  // namespace multikv
