#include "frontend/check/call.h"

#include <stdexcept>

namespace multikv {

const char* name_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32: return "float32";
    case Dtype::kFloat16: return "float16";
    case Dtype::kBFloat16: return "bfloat16";
    case Dtype::kInt32: return "int32";
    case Dtype::kInt64: return "int64";
    case Dtype::kUInt8: return "uint8";
    case Dtype::kFloat8E4M3FN: return "float8_e4m3fn";
    case Dtype::kFloat8E5M2: return "float8_e5m2";
    case Dtype::kFloat8E4M3FNUZ: return "float8_e4m3fnuz";
    case Dtype::kFloat8E5M2FNUZ: return "float8_e5m2fnuz";
    case Dtype::kOther: break;
  }
  return "of a kind of its own";
}

std::string join(std::initializer_list<std::string_view> parts) {
  std::string text;
  for (const auto part : parts) text += part;
  return text;
}

namespace {

Dtype dtype_of(Float dtype) {
  switch (dtype) {
    case Float::kFloat32: return Dtype::kFloat32;
    case Float::kFloat16: return Dtype::kFloat16;
    case Float::kBFloat16: break;
  }
  return Dtype::kBFloat16;
}

Dtype dtype_of(CacheFormat fp8) {
  switch (fp8) {
    case CacheFormat::kE4M3FN: return Dtype::kFloat8E4M3FN;
    case CacheFormat::kE5M2: return Dtype::kFloat8E5M2;
    case CacheFormat::kE4M3FNUZ: return Dtype::kFloat8E4M3FNUZ;
    case CacheFormat::kE5M2FNUZ: return Dtype::kFloat8E5M2FNUZ;
    case CacheFormat::kSame: break;
  }
  return Dtype::kOther;
}

const char* device_type_text(int32_t type) {
  if (type == aoti_torch_device_type_cpu()) return "cpu";
  if (type == aoti_torch_device_type_cuda()) return "cuda";
  if (type == aoti_torch_device_type_meta()) return "meta";
  return "another type";
}

const void* checked_address(const Call& call, std::string_view argument, const Tensor& tensor, const void* address) {
  const auto rest = reinterpret_cast<uintptr_t>(address) % tensor.element_bytes();
  if (rest != 0) {
    const std::string size = std::to_string(tensor.element_bytes());
    call.fail(argument, join({"an address that is a multiple of ", size, ", the element's size"}),
              std::to_string(rest) + " bytes more");
  }
  return address;
}

std::string numbers_text(int64_t count, auto number) {
  std::string text = "[";
  for (int64_t i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(number(i));
  return text + "]";
}

}  // namespace

std::string device_text(Device device) {
  const std::string type = device_type_text(device.type);
  return device.index < 0 ? type : type + ":" + std::to_string(device.index);
}

std::string dtype_text(const Tensor& tensor) {
  struct Named {
    int32_t raw;
    const char* name;
  };
  const Named others[] = {
      {aoti_torch_dtype_float64(), "float64"},
      {aoti_torch_dtype_int8(), "int8"},
      {aoti_torch_dtype_int16(), "int16"},
      {aoti_torch_dtype_bool(), "bool"},
  };
  for (const auto& other : others) {
    if (tensor.raw_dtype() == other.raw) return other.name;
  }
  if (tensor.dtype() == Dtype::kOther) return "number " + std::to_string(tensor.raw_dtype()) + " of torch's dtypes";
  return name_of(tensor.dtype());
}

std::string shape_text(const Tensor& tensor) {
  return numbers_text(tensor.dim(), [&](int64_t i) { return tensor.size(i); });
}

std::string layout_text(const Tensor& tensor) {
  const std::string strides = numbers_text(tensor.dim(), [&](int64_t i) { return tensor.stride(i); });
  return join({"shape ", shape_text(tensor), " and strides ", strides});
}

void Call::fail(std::string_view argument, std::string_view expected, std::string_view got) const {
  throw std::runtime_error(join({op_, ": ", argument, ": expected ", expected, ", got ", got}));
}

void Call::fail_index(std::string_view argument, std::string_view position, std::string_view expected,
                      int64_t got) const {
  throw std::out_of_range(
      join({op_, ": ", argument, "[", position, "]: expected ", expected, ", got ", std::to_string(got)}));
}

void Call::check_device(std::string_view argument, const Tensor& tensor) {
  if (tensor.is_none()) fail(argument, "a tensor", "None");
  if (device_of_.empty()) {
    const int32_t type = backend_.device_type();
    if (tensor.device().type != type) {
      fail(argument, join({"device ", device_type_text(type), " like another argument"}), device_text(tensor.device()));
    }
    device_of_ = argument;
    device_ = tensor.device();
  } else if (!(tensor.device() == device_)) {
    fail(argument, join({"device ", device_text(device_), " like ", device_of_}), device_text(tensor.device()));
  }
}

void Call::check_peer_device(std::string_view argument, const Tensor& tensor) {
  if (device_of_.empty() || tensor.device().type != device_.type) check_device(argument, tensor);
}

void Call::check_on_cpu(std::string_view argument, const Tensor& tensor) const {
  if (tensor.is_none()) fail(argument, "a tensor", "None");
  if (tensor.device().type != aoti_torch_device_type_cpu()) fail(argument, "device cpu", device_text(tensor.device()));
}

void Call::check_dim(std::string_view argument, const Tensor& tensor, int64_t dim) const {
  if (tensor.dim() == dim) return;
  fail(argument, join({std::to_string(dim), " dimensions"}), join({"shape ", shape_text(tensor)}));
}

void Call::check_device_and_dim(std::string_view argument, const Tensor& tensor, int64_t dim) {
  check_device(argument, tensor);
  check_dim(argument, tensor, dim);
}

void Call::check_size(std::string_view argument, const Tensor& tensor, int64_t dim, int64_t size,
                      std::string_view of) const {
  if (tensor.size(dim) == size) return;
  fail(argument, join({"size ", std::to_string(size), " (", of, ") in dimension ", std::to_string(dim)}),
       join({"shape ", shape_text(tensor)}));
}

void Call::check_min_size(std::string_view argument, const Tensor& tensor, int64_t dim, int64_t size,
                          std::string_view of) const {
  if (tensor.size(dim) >= size) return;
  const std::string where = dim == 0 ? "" : " in dimension " + std::to_string(dim);
  fail(argument, join({"at least ", std::to_string(size), dim == 0 ? " rows (" : " (", of, ")", where}),
       join({"shape ", shape_text(tensor)}));
}

void Call::check_dtype(std::string_view argument, const Tensor& tensor, Dtype dtype, std::string_view of) const {
  if (tensor.dtype() == dtype && dtype != Dtype::kOther) return;
  fail(argument, join({"dtype ", name_of(dtype), of.empty() ? "" : " like ", of}), dtype_text(tensor));
}

void Call::check_same_dtype(std::string_view argument, const Tensor& tensor, const Tensor& other,
                            std::string_view of) const {
  if (tensor.raw_dtype() == other.raw_dtype()) return;
  fail(argument, join({"dtype ", dtype_text(other), " like ", of}), dtype_text(tensor));
}

void Call::check_at_least(std::string_view argument, int64_t value, int64_t minimum) const {
  if (value < minimum) fail(argument, "at least " + std::to_string(minimum), std::to_string(value));
}

void Call::check_inner_stride(std::string_view argument, const Tensor& tensor) const {
  const int64_t last = tensor.dim() - 1;
  if (last < 0 || tensor.size(last) <= 1 || tensor.stride(last) == 1) return;
  fail(argument, "stride 1 in the innermost dimension", join({"stride ", std::to_string(tensor.stride(last))}));
}

void Call::check_not_expanded(std::string_view argument, const Tensor& tensor) const {
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    if (tensor.size(i) > 1 && tensor.stride(i) == 0) {
      fail(argument, "a tensor to write to, each element in a place of its own",
           join({"stride 0 in dimension ", std::to_string(i)}));
    }
  }
}

void Call::check_writable(std::string_view argument, const Tensor& tensor) const {
  check_inner_stride(argument, tensor);
  check_not_expanded(argument, tensor);
}

const void* Call::data(std::string_view argument, const Tensor& tensor) const {
  return checked_address(*this, argument, tensor, tensor.data());
}

void* Call::mutable_data(std::string_view argument, const MutableTensor& tensor) const {
  return const_cast<void*>(checked_address(*this, argument, tensor, tensor.mutable_data()));
}

const void* Call::host_data(std::string_view argument, const Tensor& tensor) const {
  const void* host = data(argument, tensor);
  if (backend_.device_view == nullptr) return host;
  const void* device = backend_.device_view(host, device_.index);
  if (device == nullptr) fail(argument, "pinned memory", "pageable memory");
  return device;
}

Float Call::float_dtype(std::string_view argument, const Tensor& tensor) const {
  switch (tensor.dtype()) {
    case Dtype::kFloat32: return Float::kFloat32;
    case Dtype::kFloat16: return Float::kFloat16;
    case Dtype::kBFloat16: return Float::kBFloat16;
    default: fail(argument, "dtype float32, float16 or bfloat16", dtype_text(tensor));
  }
}

void Call::check_name(const FormatName& name, FormatNames valid) const {
  if (name.is_one_of(valid)) return;
  const std::string_view got = name.kind == FormatName::Kind::kUnknown ? name.unknown : name.known;
  fail("kv_cache_dtype", join({"one of ", FormatName::list(valid)}), join({"'", got, "'"}));
}

CacheFormat Call::cache_format(const FormatName& name, std::string_view argument, const Tensor& cache, Float dtype,
                               std::string_view of) const {
  if (!name.is_float()) return fp8_format(name, argument, cache);
  check_float_name(name, dtype, of);
  check_dtype(argument, cache, dtype_of(dtype), of);
  return CacheFormat::kSame;
}

void Call::check_float_name(const FormatName& name, Float dtype, std::string_view of) const {
  const std::string_view wanted = name_of(dtype_of(dtype));
  if (name.kind == FormatName::Kind::kAuto || name.known == wanted) return;
  fail("kv_cache_dtype", join({"auto or ", wanted, ", the dtype of ", of}), name.known);
}

CacheFormat Call::fp8_format_of_bytes(const FormatName& name) const {
  switch (name.kind) {
    case FormatName::Kind::kE4M3FN: return CacheFormat::kE4M3FN;
    case FormatName::Kind::kE5M2: return CacheFormat::kE5M2;
    case FormatName::Kind::kE4M3FNUZ: return CacheFormat::kE4M3FNUZ;
    case FormatName::Kind::kE5M2FNUZ: return CacheFormat::kE5M2FNUZ;
    default: return backend_.e4m3_of_bytes(device_.index);
  }
}

CacheFormat Call::fp8_format(const FormatName& name, std::string_view argument, const Tensor& cache) const {
  if (name.kind == FormatName::Kind::kE4M3) return e4m3_format(argument, cache);
  const CacheFormat format = fp8_format_of_bytes(name);
  if (cache.dtype() != Dtype::kUInt8 && cache.dtype() != dtype_of(format)) {
    fail(argument, join({"dtype uint8 or ", name_of(dtype_of(format))}), dtype_text(cache));
  }
  return format;
}

CacheFormat Call::e4m3_format(std::string_view argument, const Tensor& cache) const {
  switch (cache.dtype()) {
    case Dtype::kFloat8E4M3FN: return CacheFormat::kE4M3FN;
    case Dtype::kFloat8E4M3FNUZ: return CacheFormat::kE4M3FNUZ;
    case Dtype::kUInt8: return backend_.e4m3_of_bytes(device_.index);
    default: fail(argument, "dtype uint8, float8_e4m3fn or float8_e4m3fnuz", dtype_text(cache));
  }
}

Indices Call::indices(std::string_view argument, const Tensor& tensor, int64_t dim) {
  check_device_and_dim(argument, tensor, dim);
  if (tensor.dtype() != Dtype::kInt32 && tensor.dtype() != Dtype::kInt64) {
    fail(argument, "dtype int32 or int64", dtype_text(tensor));
  }
  check_inner_stride(argument, tensor);
  return {data(argument, tensor), dim > 1 ? tensor.stride(0) : 0, tensor.dtype() == Dtype::kInt64};
}

Divisor Call::block_size(std::string_view argument, const Tensor& cache, int64_t dim) const {
  if (cache.size(dim) == 0) fail(argument, "a block size of at least 1", "shape " + shape_text(cache));
  return Divisor::of(cache.size(dim));
}

const float* Call::scale(std::string_view argument, const Tensor& scale) {
  check_device(argument, scale);
  check_dtype(argument, scale, Dtype::kFloat32, "");
  if (scale.numel() != 1) fail(argument, "1 element", "shape " + shape_text(scale));
  return static_cast<const float*>(data(argument, scale));
}

int64_t Call::scale_stride(std::string_view argument, const Tensor& scale, int64_t num_heads) {
  check_device(argument, scale);
  check_dtype(argument, scale, Dtype::kFloat32, "");
  if (scale.numel() == 1) return 0;
  if (scale.dim() != 1 || scale.size(0) != num_heads) {
    fail(argument, join({"1 element or ", std::to_string(num_heads), " (one per head)"}),
         join({"shape ", shape_text(scale)}));
  }
  check_inner_stride(argument, scale);
  return 1;
}

}  // namespace multikv
