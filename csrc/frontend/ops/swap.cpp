#include <limits>
#include <span>
#include <vector>

#include "frontend/check/formats.h"
#include "frontend/check/shapes.h"
#include "frontend/check/swap_runs.h"
#include "params/swap_params.h"

namespace multikv {

namespace {

// The tensors of swap_blocks (one pair) or swap_blocks_layers (a pair for each layer).
struct SwapTensors {
  std::span<const Tensor> src;
  std::span<const MutableTensor> dst;
  bool are_lists;

  int64_t num_layers() const { return static_cast<int64_t>(src.size()); }
  int64_t index(int64_t layer) const { return are_lists ? layer : -1; }
};

bool is_on_cpu(const Tensor& tensor) { return tensor.device().type == aoti_torch_device_type_cpu(); }

// Checks that a tensor is contiguous, and on the host or on a device of the backend's type. All tensors of a list must
// be on the device of the list's first.
void check_tensor(Call& call, const SwapSide& side, const Tensor& tensor, const Tensor& first) {
  const auto fail = [&](std::string_view expected, std::string_view got) { call.fail(side.text(), expected, got); };
  if (tensor.is_none()) fail("a tensor", "None");
  if (side.index > 0) {
    if (!(tensor.device() == first.device())) {
      fail(join({"device ", device_text(first.device()), " like ", side.name, "[0]"}), device_text(tensor.device()));
    }
  } else if (!is_on_cpu(tensor)) {
    call.check_peer_device(side.name, tensor);
  } else if (call.backend().device_type() == aoti_torch_device_type_cpu()) {
    call.check_device(side.name, tensor);
  }
  if (!tensor.is_contiguous()) fail("a contiguous tensor", layout_text(tensor));
}

int32_t device_of(const Tensor& tensor) { return is_on_cpu(tensor) ? -1 : tensor.device().index; }

SwapSide side_of(const Call& call, std::string_view name, int64_t index, const Tensor& tensor, int64_t block_bytes) {
  SwapSide side{name, index, 0, tensor.numel() * tensor.element_bytes() / block_bytes};
  side.address = reinterpret_cast<uintptr_t>(index < 0 ? data(call, name, tensor) : data(call, side.text(), tensor));
  return side;
}

void check_mapping(const Call& call, const Tensor& block_mapping) {
  check_dim(call, "block_mapping", block_mapping, 2);
  check_dtype(call, "block_mapping", block_mapping, Dtype::kInt64);
  check_size(call, "block_mapping", block_mapping, 1, 2, "a block of src and one of dst");
  check_inner_stride(call, "block_mapping", block_mapping);
}

// Returns the layers for the backend. They are valid until the thread's next call. The addresses of dst are taken here,
// after all checks, because mutable_data() makes torch copy a copy-on-write tensor.
const SwapLayer* swap_layers(const SwapTensors& tensors, const std::vector<SwapSides>& sides) {
  static thread_local std::vector<SwapLayer> layers;
  layers.clear();
  for (int64_t i = 0; i < tensors.num_layers(); ++i) {
    layers.push_back({reinterpret_cast<const void*>(sides[i].src.address), tensors.dst[i].mutable_data()});
  }
  return layers.data();
}

SwapBlocksParams make_params(Call& call, const SwapTensors& tensors, int64_t block_bytes, const Tensor& block_mapping) {
  SwapBlocksParams p{};
  const auto& [src, dst, are_lists] = tensors;
  const int64_t num_layers = tensors.num_layers();
  for (int64_t i = 0; i < num_layers; ++i) check_tensor(call, {"src", tensors.index(i), 0, 0}, src[i], src[0]);
  for (int64_t i = 0; i < num_layers; ++i) check_tensor(call, {"dst", tensors.index(i), 0, 0}, dst[i], dst[0]);
  check_at_least(call, "block_size_in_bytes", block_bytes, 1);
  check_mapping(call, block_mapping);
  if (block_mapping.size(0) == 0 || num_layers == 0) {
    call.set_nothing_to_do();
    return p;
  }
  static thread_local std::vector<SwapSides> sides;
  sides.clear();
  for (int64_t i = 0; i < num_layers; ++i) {
    sides.push_back({side_of(call, "src", tensors.index(i), src[i], block_bytes),
                     side_of(call, "dst", tensors.index(i), dst[i], block_bytes)});
  }
  const SwapRuns found = find_swap_runs(call, sides, block_bytes, block_mapping);
  p.layers = swap_layers(tensors, sides);
  p.runs = found.runs;
  p.num_layers = num_layers;
  p.num_runs = found.num_runs;
  p.longest_run = found.longest;
  p.num_blocks = block_mapping.size(0);
  p.block_bytes = block_bytes;
  p.src_bytes = found.src_end * block_bytes;
  p.dst_bytes = found.dst_end * block_bytes;
  p.src_device = device_of(src[0]);
  p.dst_device = device_of(dst[0]);
  return p;
}

// Checks an int64 tensor [copies] on the CPU, and returns its values.
const int64_t* numbers(const Call& call, std::string_view argument, const Tensor& tensor) {
  call.check_on_cpu(argument, tensor);
  check_dim(call, argument, tensor, 1);
  check_dtype(call, argument, tensor, Dtype::kInt64);
  check_inner_stride(call, argument, tensor);
  return reinterpret_cast<const int64_t*>(data(call, argument, tensor));
}

// A copy of swap_blocks_batch, before it is checked. `before` is the size of all copies before it.
struct CopyNumbers {
  int64_t src, dst, num_bytes, before;

  bool is_good() const { return num_bytes > 0 && src != 0 && dst != 0 && num_bytes <= kMost - before; }
  [[noreturn]] void fail(const Call& call, int64_t i) const {
    const auto fail_at = [&](std::string_view argument, std::string_view expected, std::string_view got) {
      call.fail(join({argument, "[", text(i), "]"}), expected, got);
    };
    if (num_bytes < 0) fail_at("sizes", "a number of bytes of at least 0", text(num_bytes));
    if (src == 0) fail_at("src_ptrs", "a non-null address", text(src));
    if (dst == 0) fail_at("dst_ptrs", "a non-null address", text(dst));
    call.fail(join({"sizes[", text(i), "]"}), join({"a sum of sizes of at most ", text(kMost), " bytes"}),
              join({text(num_bytes), " after ", text(before), " bytes"}));
  }

 private:
  static constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
};

// Returns whether `copy` ends at the addresses src and dst, so that a copy that begins there can be merged into it.
bool is_continued_by(const SwapCopy& copy, int64_t src, int64_t dst) {
  const auto num_bytes = static_cast<uintptr_t>(copy.num_bytes);
  return reinterpret_cast<uintptr_t>(copy.src) + num_bytes == static_cast<uintptr_t>(src) &&
         reinterpret_cast<uintptr_t>(copy.dst) + num_bytes == static_cast<uintptr_t>(dst);
}

}  // namespace

SwapBlocksParams make_swap_blocks_params(Call& call, const Tensor& src, const MutableTensor& dst,
                                         int64_t block_size_in_bytes, const Tensor& block_mapping) {
  // This check comes first: if only block_mapping is on a GPU, the dispatcher calls the GPU backend for a src and a dst
  // on the host. After this check, src or dst is on a device of the backend.
  call.check_on_cpu("block_mapping", block_mapping);
  return make_params(call, {{&src, 1}, {&dst, 1}, false}, block_size_in_bytes, block_mapping);
}

SwapBlocksParams make_swap_blocks_layers_params(Call& call, const TensorList& src, const MutableTensorList& dst,
                                                int64_t block_size_in_bytes, const Tensor& block_mapping) {
  call.check_on_cpu("block_mapping", block_mapping);
  if (dst.size() != src.size()) {
    call.fail("dst", count_text(src.size(), "tensor") + ", one for each of src", text(dst.size()));
  }
  return make_params(call, {src.items, dst.items, true}, block_size_in_bytes, block_mapping);
}

SwapBlocksBatchParams make_swap_blocks_batch_params(Call& call, const Tensor& src_ptrs, const MutableTensor& dst_ptrs,
                                                    const Tensor& sizes, bool is_src_access_order_any) {
  const int64_t* src = numbers(call, "src_ptrs", src_ptrs);
  const int64_t* dst = numbers(call, "dst_ptrs", dst_ptrs);
  const int64_t* bytes = numbers(call, "sizes", sizes);
  const int64_t count = src_ptrs.size(0);
  check_size(call, "dst_ptrs", dst_ptrs, 0, count, "size of src_ptrs");
  check_size(call, "sizes", sizes, 0, count, "size of src_ptrs");
  static thread_local std::vector<SwapCopy> kept;  // lives until the thread's next call
  if (static_cast<int64_t>(kept.size()) < count) kept.resize(count);
  SwapCopy* const begin = kept.data();
  SwapCopy* end = begin;
  int64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (bytes[i] == 0) continue;
    const CopyNumbers copy{src[i], dst[i], bytes[i], sum};
    if (!copy.is_good()) copy.fail(call, i);
    if (end != begin && is_continued_by(end[-1], src[i], dst[i])) {
      end[-1].num_bytes += bytes[i];
    } else {
      *end++ = {reinterpret_cast<const void*>(src[i]), reinterpret_cast<void*>(dst[i]), bytes[i], sum};
    }
    sum += bytes[i];
  }
  if (end == begin) call.set_nothing_to_do();
  return {begin, end - begin, sum, is_src_access_order_any};
}

}  // namespace multikv
