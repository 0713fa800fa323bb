#include "frontend/check/planes.h"

namespace multikv {

namespace {

bool is_on_cpu(const Tensor& tensor) { return tensor.device().type == aoti_torch_device_type_cpu(); }

void check_same_size(const Call& call, std::string_view argument, int64_t index, const Tensor& plane, int64_t dim,
                     const Tensor& first, std::string_view what) {
  if (plane.size(dim) == first.size(dim)) return;
  check_size(call, plane_name(argument, index), plane, dim, first.size(dim), join({what, " of ", argument, "[0]"}));
}

void check_same_entry(const Call& call, std::string_view argument, int64_t index, const Tensor& plane,
                      const Tensor& first) {
  if (plane.dim() != first.dim()) {
    call.fail(plane_name(argument, index), join({count_text(first.dim(), "dimension"), " like ", argument, "[0]"}),
              shape_text(plane));
  }
  for (int64_t d = 2; d < plane.dim(); ++d) check_same_size(call, argument, index, plane, d, first, "entry size");
  if (plane.element_bytes() != first.element_bytes()) {
    call.fail(plane_name(argument, index),
              join({"elements of ", count_text(first.element_bytes(), "byte"), " like ", argument, "[0]"}),
              dtype_text(plane));
  }
}

}  // namespace

void check_num_planes(const Call& call, std::string_view argument, int64_t num_planes) {
  if (num_planes == 0) call.fail(argument, "at least 1 tensor", "an empty list");
}

void check_plane_device(Call& call, std::string_view argument, int64_t index, const Tensor& plane) {
  if (plane.is_none()) call.fail(plane_name(argument, index), "a tensor", "None");
  // A name that was made here would not outlive this function, and the Call keeps that of the first tensor.
  if (index == 0) call.check_device(argument, plane);
  else call.check_device(plane_name(argument, index), plane);
}

void check_plane_shape(const Call& call, std::string_view argument, int64_t index, const Tensor& plane,
                       const Tensor& first, const PlanesRule& rule) {
  const bool is_dim_good = rule.may_have_more_dims ? plane.dim() >= rule.min_dim : plane.dim() == rule.min_dim;
  if (!is_dim_good) {
    call.fail(plane_name(argument, index),
              join({rule.may_have_more_dims ? "at least " : "", count_text(rule.min_dim, "dimension")}),
              shape_text(plane));
  }
  check_same_size(call, argument, index, plane, 0, first, "number of blocks");
  if (rule.has_one_block_size) check_same_size(call, argument, index, plane, 1, first, "block size");
  if (rule.has_one_entry) check_same_entry(call, argument, index, plane, first);
  // The next two checks are called only for a plane that fails them, because making the name of a plane for the call
  // allocates memory.
  const int64_t last = plane.dim() - 1;
  if (plane.size(last) > 1 && plane.stride(last) != 1) check_inner_stride(call, plane_name(argument, index), plane);
  for (int64_t d = 0; rule.is_written && d <= last; ++d) {
    if (plane.size(d) > 1 && plane.stride(d) == 0) check_not_expanded(call, plane_name(argument, index), plane);
  }
}

IndexList IndexLists::add(std::string_view argument, const Tensor& tensor, int64_t dim) {
  if (tensor.is_none()) call_.fail(argument, "a tensor", "None");
  const bool is_cpu_call = call_.backend().device_type() == aoti_torch_device_type_cpu();
  if (previous_.empty()) {
    are_on_host_ = is_on_cpu(tensor);
  } else if (is_on_cpu(tensor) != are_on_host_ && !is_cpu_call) {
    call_.fail(argument, join({are_on_host_ ? "a CPU tensor like " : "a CUDA tensor like ", previous_}),
               device_text(tensor.device()));
  }
  previous_ = argument;
  if (!are_on_host_ || is_cpu_call) call_.check_device(argument, tensor);
  return {indices_on_any_device(call_, argument, tensor, dim), tensor.size(0)};
}

HostIndices IndexLists::on_host(const IndexList& list, int64_t columns) const {
  if (are_on_host_) return HostIndices(list.indices);
  return columns == 1 ? HostIndices(call_, list.indices, 1, list.size)
                      : HostIndices(call_, list.indices, list.size, columns);
}

void check_entry(const Call& call, std::string_view argument, int64_t i, int64_t column, std::string_view noun,
                 int64_t entry, int64_t count) {
  if (entry < count) return;
  const std::string subscript = column < 0 ? text(i) : join({text(i), ", ", text(column)});
  call.fail_index(argument, subscript, join({"a ", noun, " below ", text(count)}), entry);
}

void check_entries(const Call& call, std::string_view argument, const IndexLists& lists, const IndexList& list,
                   std::string_view noun, int64_t count) {
  if (!lists.are_checked()) return;
  const HostIndices host = lists.on_host(list);
  for (int64_t i = 0; i < list.size; ++i) check_entry(call, argument, i, -1, noun, host[i], count);
}

}  // namespace multikv
