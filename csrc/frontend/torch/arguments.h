// The types in which ops receive their arguments from the stable ABI.
//
// Conversion never throws: the dispatcher hands over ownership of every argument, and an exception halfway would leak
// the rest. Whatever is wrong with an argument is found by the checks, which run when all of them are held.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace multikv {

enum class Dtype : uint8_t {
  kOther,
  kFloat32,
  kFloat16,
  kBFloat16,
  kInt32,
  kInt64,
  kUInt8,
  kFloat8E4M3FN,
  kFloat8E5M2,
  kFloat8E4M3FNUZ,
  kFloat8E5M2FNUZ,
};

struct Device {
  int32_t type;  // as the shim numbers them
  int32_t index;
  bool operator==(const Device&) const = default;
};

// A tensor argument with its metadata, read once. Sizes and strides live as long as it does.
class Tensor {
 public:
  explicit Tensor(AtenTensorHandle handle) noexcept;
  Tensor(Tensor&& other) noexcept { *this = std::move(other); }
  Tensor& operator=(Tensor&& other) noexcept;
  ~Tensor();

  bool is_none() const { return dim_ < 0; }  // Python's None; nothing else may be asked of it
  int64_t dim() const { return dim_; }
  int64_t size(int64_t i) const { return sizes_[i]; }
  int64_t stride(int64_t i) const { return strides_[i]; }
  int64_t numel() const;
  bool is_contiguous() const;
  Dtype dtype() const { return dtype_; }
  int32_t raw_dtype() const { return raw_dtype_; }
  int64_t element_bytes() const { return element_bytes_; }
  Device device() const { return device_; }
  const void* data() const;

 protected:
  AtenTensorHandle handle_ = nullptr;

 private:
  int64_t dim_ = -1;
  const int64_t* sizes_ = nullptr;
  const int64_t* strides_ = nullptr;
  Device device_{};
  int32_t raw_dtype_ = 0;
  int32_t element_bytes_ = 0;
  Dtype dtype_ = Dtype::kOther;
};

// A tensor that the op writes: `Tensor(a!)` in the schema.
class MutableTensor : public Tensor {
 public:
  using Tensor::Tensor;
  void* mutable_data() const;
};

// `Tensor[]` and `Tensor(a!)[]` in the schema.
template <class Element>
struct ListOf {
  std::vector<Element> items;

  int64_t size() const { return static_cast<int64_t>(items.size()); }
  const Element& operator[](int64_t i) const { return items[i]; }
};
using TensorList = ListOf<Tensor>;
using MutableTensorList = ListOf<MutableTensor>;

// Which names an op takes for the format of its cache: those of most caches; these and fp8_ds_mla; those of fp8 alone;
// those of the indexer's cache.
enum class FormatNames : uint8_t { kCache = 1, kMla = 2, kFp8 = 4, kIndexer = 8 };

// A `str` that names how a cache stores its elements.
struct FormatName {
  enum class Kind : uint8_t {
    kUnknown,
    kAuto,
    kFloat32,
    kFloat16,
    kBFloat16,
    kE4M3,
    kE4M3FN,
    kE5M2,
    kE4M3FNUZ,
    kE5M2FNUZ,  // kE4M3: fn or fnuz, as cache and device have it
    kDsMla,
    kPowerOfTwo,
    kExponentBytes,
  };
  Kind kind = Kind::kUnknown;
  uint8_t lists = 0;       // the FormatNames that hold it
  std::string_view known;  // the name, if we know it,
  std::string unknown;     // else what came

  bool is_one_of(FormatNames names) const { return (lists & static_cast<uint8_t>(names)) != 0; }
  bool is_float() const { return kind >= Kind::kAuto && kind <= Kind::kBFloat16; }
  static FormatName parse(const char* data, size_t length);
  static std::string list(FormatNames names);
};

}  // namespace multikv

// How TORCH_BOX reads our types from the stack. (Its own conversion of a str leaks a string on every call in torch
// 2.13.)
HIDDEN_NAMESPACE_BEGIN(torch, stable, detail)

template <>
struct ToImpl<multikv::Tensor> {
  static multikv::Tensor call(StableIValue value, uint64_t, bool) {
    return multikv::Tensor(to<AtenTensorHandle>(value));
  }
};

template <>
struct ToImpl<multikv::MutableTensor> {
  static multikv::MutableTensor call(StableIValue value, uint64_t, bool) {
    return multikv::MutableTensor(to<AtenTensorHandle>(value));
  }
};

template <>
struct ToImpl<std::optional<multikv::Tensor>> {
  static std::optional<multikv::Tensor> call(StableIValue value, uint64_t, bool) {
    auto* inner = to<StableIValue*>(value);
    if (inner == nullptr) return std::nullopt;
    std::optional<multikv::Tensor> tensor(std::in_place, to<AtenTensorHandle>(*inner));
    delete inner;
    return tensor;
  }
};

// The list owns a handle of each tensor, and hands it over.
template <class Element>
struct ToImpl<multikv::ListOf<Element>> {
  static multikv::ListOf<Element> call(StableIValue value, uint64_t, bool) {
    auto handle = to<StableListHandle>(value);
    multikv::ListOf<Element> list;
    size_t size = 0;
    torch_list_size(handle, &size);
    list.items.reserve(size);
    for (size_t i = 0; i < size; ++i) {
      StableIValue item{};
      torch_list_get_item(handle, i, &item);
      list.items.emplace_back(to<AtenTensorHandle>(item));
    }
    torch_delete_list(handle);
    return list;
  }
};

template <>
struct ToImpl<multikv::FormatName> {
  static multikv::FormatName call(StableIValue value, uint64_t, bool) {
    auto handle = to<StringHandle>(value);
    const char* data = "";
    size_t length = 0;
    torch_string_length(handle, &length);
    torch_string_c_str(handle, &data);
    auto name = multikv::FormatName::parse(data, length);
    torch_delete_string(handle);
    return name;
  }
};

HIDDEN_NAMESPACE_END(torch, stable, detail)
