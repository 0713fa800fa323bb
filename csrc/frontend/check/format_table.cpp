#include "frontend/check/format_table.h"

#include <string_view>

#include "core/format.h"

namespace multikv {

namespace {

constexpr std::string_view name_of(ElementChoice choice) {
  switch (choice) {
    case ElementChoice::kFixed: return "fixed";
    case ElementChoice::kInput: return "input";
    case ElementChoice::kE4M3: break;
  }
  return "e4m3";
}

constexpr std::string_view name_of(Element element) {
  switch (element) {
    case Element::kFloat32: return "float32";
    case Element::kFloat16: return "float16";
    case Element::kBFloat16: return "bfloat16";
    case Element::kE4M3FN: return "e4m3fn";
    case Element::kE5M2: return "e5m2";
    case Element::kE4M3FNUZ: return "e4m3fnuz";
    case Element::kE5M2FNUZ: return "e5m2fnuz";
    case Element::kInt8: return "int8";
    case Element::kInt4: return "int4";
    case Element::kE2M1: break;
  }
  return "e2m1";
}

constexpr std::string_view name_of(ScaleGroup group) {
  switch (group) {
    case ScaleGroup::kNone: return "none";
    case ScaleGroup::kTensorOrHead: return "tensor_or_head";
    case ScaleGroup::kTokenHead: return "token_head";
    case ScaleGroup::kTile: break;
  }
  return "tile";
}

constexpr std::string_view name_of(ScaleType type) {
  switch (type) {
    case ScaleType::kNone: return "none";
    case ScaleType::kFloat32: return "float32";
    case ScaleType::kPowerOfTwo: return "power_of_two";
    case ScaleType::kExponentByte: return "exponent_byte";
    case ScaleType::kExponentBytes: return "exponent_bytes";
    case ScaleType::kE4M3FN: break;
  }
  return "e4m3fn";
}

constexpr std::string_view name_of(ScalePlace place) {
  switch (place) {
    case ScalePlace::kNone: return "none";
    case ScalePlace::kArgument: return "argument";
    case ScalePlace::kTensor: return "tensor";
    case ScalePlace::kInline: return "inline";
    case ScalePlace::kBlockTail: return "block_tail";
    case ScalePlace::kEntry: break;
  }
  return "entry";
}

constexpr struct {
  FormatFamily family;
  std::string_view name;
} kFamilies[] = {{FormatFamily::kCache, "cache"},
                 {FormatFamily::kMla, "mla"},
                 {FormatFamily::kConvert, "convert"},
                 {FormatFamily::kIndexer, "indexer"}};

// No name contains a character that JSON escapes.
std::string quoted(std::string_view text) { return '"' + std::string(text) + '"'; }

std::string families_json(const CacheFormat& row) {
  std::string list;
  for (const auto& [family, name] : kFamilies) {
    if (row.is_for(family)) (list += list.empty() ? "" : ", ") += quoted(name);
  }
  return "[" + list + "]";
}

std::string boolean(bool value) { return value ? "true" : "false"; }

std::string row_json(const CacheFormat& row) {
  const Codec& codec = row.codec;
  return R"({"name": )" + quoted(row.name) + R"(, "families": )" + families_json(row) + R"(, "element_choice": )" +
         quoted(name_of(row.choice)) + R"(, "element": )" + quoted(name_of(codec.element)) + R"(, "element_bits": )" +
         std::to_string(num_bits(codec.element)) + R"(, "scale_group": )" + quoted(name_of(codec.scale_group)) +
         R"(, "scale_type": )" + quoted(name_of(codec.scale_type)) + R"(, "scale_place": )" +
         quoted(name_of(codec.scale_place)) + R"(, "tile_size": )" + std::to_string(codec.tile_size) +
         R"(, "has_zero_point": )" + boolean(codec.has_zero_point) + R"(, "is_rotated": )" + boolean(codec.is_rotated) +
         "}";
}

}  // namespace

std::string formats_json() {
  std::string rows;
  for (const CacheFormat& row : kCacheFormats) (rows += rows.empty() ? "" : ",\n") += row_json(row);
  return "[" + rows + "]";
}

}  // namespace multikv
