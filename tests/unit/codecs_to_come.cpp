// Codecs that no op has yet, as rows of the table would state them. That this compiles shows that the struct can hold
// them.
#include "core/format.h"

namespace multikv {
namespace {

constexpr CacheFormat kToCome[] = {
    // A float32 scale for each token and head, in a tensor of the caller's.
    {"fp8_per_token_head",
     {.element = Element::kE4M3FN, .scale_group = ScaleGroup::kTokenHead, .scale_type = ScaleType::kFloat32,
      .scale_place = ScalePlace::kTensor},
     ElementChoice::kE4M3,
     0},
    {"int8_per_token_head",
     {.element = Element::kInt8, .scale_group = ScaleGroup::kTokenHead, .scale_type = ScaleType::kFloat32,
      .scale_place = ScalePlace::kTensor},
     ElementChoice::kFixed,
     0},
    // Half a byte for each element, a zero point with the scale, after a Hadamard rotation; the scale behind the codes.
    {"int4_per_token_head",
     {.element = Element::kInt4, .scale_group = ScaleGroup::kTokenHead, .scale_type = ScaleType::kFloat32,
      .scale_place = ScalePlace::kInline, .has_zero_point = true, .is_rotated = true},
     ElementChoice::kFixed,
     0},
    // A scale for every 16, or 32, elements.
    {"nvfp4",
     {.element = Element::kE2M1, .scale_group = ScaleGroup::kTile, .scale_type = ScaleType::kE4M3FN,
      .scale_place = ScalePlace::kTensor, .tile_size = 16},
     ElementChoice::kFixed,
     0},
    {"mxfp8",
     {.element = Element::kE4M3FN, .scale_group = ScaleGroup::kTile, .scale_type = ScaleType::kExponentByte,
      .scale_place = ScalePlace::kTensor, .tile_size = 32},
     ElementChoice::kFixed,
     0},
};

constexpr int64_t kHeadSize = 128;
static_assert(kToCome[0].codec.num_bytes(kHeadSize) == 128);
static_assert(kToCome[1].codec.num_bytes(kHeadSize) == 128);
static_assert(kToCome[2].codec.num_bytes(kHeadSize) == 64 && kToCome[2].codec.num_bytes(7) == 4);
static_assert(kToCome[3].codec.num_bytes(kHeadSize) == 64 && kHeadSize / kToCome[3].codec.tile_size == 8);
static_assert(kToCome[4].codec.num_bytes(kHeadSize) == 128 && kHeadSize / kToCome[4].codec.tile_size == 4);
static_assert(kToCome[2].codec.has_zero_point && kToCome[2].codec.is_rotated && !kToCome[2].codec.is_float());
static_assert(kToCome[0].codec != kToCome[1].codec);

}  // namespace
}  // namespace multikv
