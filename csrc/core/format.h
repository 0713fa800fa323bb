// The table of cache formats. The front end and the kernels take all that they know of a format from this table.
//
// A new format needs a row in kCacheFormats, an encoder and a decoder in each backend, and a reference in
// multikv/reference. multikv/formats.py holds the same table for Python; a test compares the two.
#pragma once

#include <cstdint>
#include <string_view>

namespace multikv {

// The floating-point dtypes of the inputs and outputs of ops.
enum class Float : uint8_t { kFloat32, kFloat16, kBFloat16 };

// How one element of a cache is stored. core/fp8.h describes the fp8 elements. kInt8, kInt4 and kE2M1 are reserved: no
// kernel implements them yet.
enum class Element : uint8_t {
  kFloat32,
  kFloat16,
  kBFloat16,
  kE4M3FN,
  kE5M2,
  kE4M3FNUZ,
  kE5M2FNUZ,
  kInt8,
  kInt4,
  kE2M1,
};

inline constexpr Element kFp8Elements[] = {Element::kE4M3FN, Element::kE5M2, Element::kE4M3FNUZ, Element::kE5M2FNUZ};

constexpr bool is_fp8(Element element) {
  return element == Element::kE4M3FN || element == Element::kE5M2 || element == Element::kE4M3FNUZ ||
         element == Element::kE5M2FNUZ;
}

constexpr bool is_float(Element element) {
  return element == Element::kFloat32 || element == Element::kFloat16 || element == Element::kBFloat16;
}

constexpr int num_bits(Element element) {
  switch (element) {
    case Element::kFloat32: return 32;
    case Element::kFloat16:
    case Element::kBFloat16: return 16;
    case Element::kE4M3FN:
    case Element::kE5M2:
    case Element::kE4M3FNUZ:
    case Element::kE5M2FNUZ:
    case Element::kInt8: return 8;
    case Element::kInt4:
    case Element::kE2M1: return 4;
  }
  return 0;
}

constexpr Element element_of(Float dtype) {
  switch (dtype) {
    case Float::kFloat32: return Element::kFloat32;
    case Float::kFloat16: return Element::kFloat16;
    case Float::kBFloat16: break;
  }
  return Element::kBFloat16;
}

constexpr int64_t num_bytes(Float dtype) { return dtype == Float::kFloat32 ? 4 : 2; }

// The size of `count` contiguous elements, rounded up to whole bytes.
constexpr int64_t num_bytes(Element element, int64_t count) { return (count * num_bits(element) + 7) / 8; }

// Calls with<kElement>() for an fp8 element that is known at run time.
template <class With>
constexpr decltype(auto) with_fp8(Element element, With with) {
  switch (element) {
    case Element::kE4M3FN: return with.template operator()<Element::kE4M3FN>();
    case Element::kE5M2: return with.template operator()<Element::kE5M2>();
    case Element::kE4M3FNUZ: return with.template operator()<Element::kE4M3FNUZ>();
    case Element::kE5M2FNUZ: return with.template operator()<Element::kE5M2FNUZ>();
    case Element::kFloat32:
    case Element::kFloat16:
    case Element::kBFloat16:
    case Element::kInt8:
    case Element::kInt4:
    case Element::kE2M1: break;
  }
  __builtin_unreachable();  // callers ask is_fp8() first
}

// Which elements share a scale.
enum class ScaleGroup : uint8_t {
  kNone,          // there are no scales
  kTensorOrHead,  // all elements of the cache if the scale argument has one element, else those of one head
  kTokenHead,     // the elements of one head of one token
  kTile,          // a tile of neighbouring elements of one token
};

// How a scale is stored.
enum class ScaleType : uint8_t {
  kNone,
  kFloat32,
  kPowerOfTwo,     // a float32 that is a power of two
  kExponentByte,   // the exponent byte of such a float32 (ue8m0)
  kExponentBytes,  // the exponent byte, repeated four times
  kE4M3FN,         // an e4m3fn number; the scale is its product with one float32 of the whole tensor
};

// The place where scales are stored.
enum class ScalePlace : uint8_t {
  kNone,
  kArgument,   // in an argument of the op, which the op reads
  kTensor,     // in a tensor of scales, which the op writes
  kInline,     // in the cache, after the codes of each head
  kBlockTail,  // in the cache, after all codes of a block
  kEntry,      // in the cache, at a fixed offset of each entry
};

// How elements become stored codes and back.
struct Codec {
  Element element = Element::kFloat32;
  ScaleGroup scale_group = ScaleGroup::kNone;
  ScaleType scale_type = ScaleType::kNone;
  ScalePlace scale_place = ScalePlace::kNone;
  uint16_t tile_size = 0;       // elements per tile; 0 without tiles, or if the arguments of the op determine it
  bool has_zero_point = false;  // a zero point is stored with each scale
  bool is_rotated = false;      // a Hadamard rotation comes before quantisation

  constexpr bool is_float() const { return multikv::is_float(element); }
  constexpr int64_t num_bytes(int64_t count) const { return multikv::num_bytes(element, count); }
  constexpr bool operator==(const Codec&) const = default;
};

constexpr Codec float_codec(Float dtype) { return {.element = element_of(dtype)}; }

// What determines the element of a format.
enum class ElementChoice : uint8_t {
  kFixed,  // the format's row: Codec::element
  kInput,  // the dtype of the op's floating-point input or output
  kE4M3,   // the dtype of the cache: e4m3fn or e4m3fnuz; for a uint8 cache, the one that the platform's attention reads
};

// Families of ops that accept the same format names. A set of families is the bitwise or of its members.
enum class FormatFamily : uint8_t { kCache = 1, kMla = 2, kConvert = 4, kIndexer = 8 };

// A value of the argument kv_cache_dtype, and what it means to some families of ops.
struct CacheFormat {
  std::string_view name;
  Codec codec;  // unless the choice is kFixed, the front end replaces the element
  ElementChoice choice;
  uint8_t families;  // a set of FormatFamily

  constexpr bool is_for(FormatFamily family) const { return (families & static_cast<uint8_t>(family)) != 0; }
};

namespace format_rows {

constexpr uint8_t kCacheMla = static_cast<uint8_t>(FormatFamily::kCache) | static_cast<uint8_t>(FormatFamily::kMla);
constexpr uint8_t kCacheMlaConvert = kCacheMla | static_cast<uint8_t>(FormatFamily::kConvert);
constexpr auto kMla = static_cast<uint8_t>(FormatFamily::kMla);
constexpr auto kIndexer = static_cast<uint8_t>(FormatFamily::kIndexer);

constexpr Codec scaled(Element element) {
  return {element, ScaleGroup::kTensorOrHead, ScaleType::kFloat32, ScalePlace::kArgument};
}
constexpr Codec indexer(ScaleType type, Element element = Element::kE4M3FN) {
  return {element, ScaleGroup::kTile, type, ScalePlace::kBlockTail};
}
constexpr Codec kDsMla{Element::kE4M3FN, ScaleGroup::kTile, ScaleType::kPowerOfTwo, ScalePlace::kEntry, 128};

}  // namespace format_rows

// Error messages list the names in the order of the rows. A name with several meanings has a row for each.
inline constexpr CacheFormat kCacheFormats[] = {
    {"auto", {}, ElementChoice::kInput, format_rows::kCacheMla},
    {"auto", format_rows::indexer(ScaleType::kFloat32), ElementChoice::kE4M3, format_rows::kIndexer},
    {"float16", {Element::kFloat16}, ElementChoice::kFixed, format_rows::kCacheMla},
    {"bfloat16", {Element::kBFloat16}, ElementChoice::kFixed, format_rows::kCacheMla},
    {"float32", {Element::kFloat32}, ElementChoice::kFixed, format_rows::kCacheMla},
    {"float32", format_rows::indexer(ScaleType::kFloat32), ElementChoice::kE4M3, format_rows::kIndexer},
    {"fp32", format_rows::indexer(ScaleType::kFloat32), ElementChoice::kE4M3, format_rows::kIndexer},
    {"fp8", format_rows::scaled(Element::kE4M3FN), ElementChoice::kE4M3, format_rows::kCacheMlaConvert},
    {"fp8", format_rows::indexer(ScaleType::kFloat32), ElementChoice::kE4M3, format_rows::kIndexer},
    {"fp8_e4m3", format_rows::scaled(Element::kE4M3FN), ElementChoice::kE4M3, format_rows::kCacheMlaConvert},
    {"fp8_e4m3", format_rows::indexer(ScaleType::kFloat32), ElementChoice::kE4M3, format_rows::kIndexer},
    {"fp8_e5m2", format_rows::scaled(Element::kE5M2), ElementChoice::kFixed, format_rows::kCacheMlaConvert},
    {"fp8_e4m3fn", format_rows::scaled(Element::kE4M3FN), ElementChoice::kFixed, format_rows::kCacheMlaConvert},
    {"fp8_e4m3fn", format_rows::indexer(ScaleType::kFloat32), ElementChoice::kFixed, format_rows::kIndexer},
    {"fp8_e4m3fnuz", format_rows::scaled(Element::kE4M3FNUZ), ElementChoice::kFixed, format_rows::kCacheMlaConvert},
    {"fp8_e4m3fnuz", format_rows::indexer(ScaleType::kFloat32, Element::kE4M3FNUZ), ElementChoice::kFixed,
     format_rows::kIndexer},
    {"fp8_e5m2fnuz", format_rows::scaled(Element::kE5M2FNUZ), ElementChoice::kFixed, format_rows::kCacheMlaConvert},
    {"fp8_ds_mla", format_rows::kDsMla, ElementChoice::kE4M3, format_rows::kMla},
    {"ue8m0", format_rows::indexer(ScaleType::kPowerOfTwo), ElementChoice::kE4M3, format_rows::kIndexer},
    {"mxfp8", format_rows::indexer(ScaleType::kExponentBytes), ElementChoice::kE4M3, format_rows::kIndexer},
};

}  // namespace multikv
