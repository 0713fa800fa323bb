#include "cpu/isa/cache/strided.h"
#include "cpu/isa/codec/dequantise.h"
#include "cpu/isa/codec/quantise.h"
#include "params/convert_params.h"

namespace multikv::cpu {
namespace {

// convert(to, from, count, stores) converts contiguous elements.
template <class Convert>
concept ElementConverter = std::invocable<const Convert&, char*, const char*, int64_t, Stores>;

// Copies a few bytes. The most frequent sizes are 1, 2 and 4 bytes; the memcpy of a constant size is inlined.
void copy_few(char* to, const char* from, int64_t num_bytes) {
  switch (num_bytes) {
    case 1: std::memcpy(to, from, 1); break;
    case 2: std::memcpy(to, from, 2); break;
    case 4: std::memcpy(to, from, 4); break;
    default: std::memcpy(to, from, num_bytes);
  }
}

// Converts the elements [begin, end) of long rows: each piece of a row directly from src to dst.
template <ElementConverter Convert>
void convert_long_rows(const ConvertFp8Params& p, int64_t begin, int64_t end, Stores stores, const Convert& convert) {
  const int64_t src_bytes = p.src_element_bytes(), dst_bytes = p.dst_element_bytes();
  PieceWalker pieces(p.rows, begin);
  for (int64_t i = begin; i < end;) {
    const auto piece = pieces.next(end - i);
    convert(p.dst + piece.dst * dst_bytes, p.src + piece.src * src_bytes, piece.count, stores);
    i += piece.count;
  }
  finish(stores);
}

// Converts the elements [begin, end) of short rows. The elements of many rows are collected in a buffer, converted with
// one call, and copied to dst.
template <ElementConverter Convert>
void convert_short_rows(const ConvertFp8Params& p, int64_t begin, int64_t end, const Convert& convert) {
  constexpr int64_t kMost = 256;
  const int64_t src_bytes = p.src_element_bytes(), dst_bytes = p.dst_element_bytes();
  alignas(64) char inputs[kMost * 4], outputs[kMost * 4];
  PieceWalker read(p.rows, begin), write = read;
  for (int64_t i = begin; i < end; i += kMost) {
    const int64_t count = end - i < kMost ? end - i : kMost;
    for (int64_t j = 0; j < count;) {
      const auto piece = read.next(count - j);
      copy_few(inputs + j * src_bytes, p.src + piece.src * src_bytes, piece.count * src_bytes);
      j += piece.count;
    }
    convert(outputs, inputs, count, Stores::kOrdinary);
    for (int64_t j = 0; j < count;) {
      const auto piece = write.next(count - j);
      copy_few(p.dst + piece.dst * dst_bytes, outputs + j * dst_bytes, piece.count * dst_bytes);
      j += piece.count;
    }
  }
}

template <ElementConverter Convert>
void convert_elements(const ConvertFp8Params& p, int64_t begin, int64_t end, Stores stores, const Convert& convert) {
  constexpr int64_t kShort = 32;
  if (p.rows.row_size >= kShort) convert_long_rows(p, begin, end, stores, convert);
  else convert_short_rows(p, begin, end, convert);
}

}  // namespace

template <>
void run<kIsa>(const ConvertFp8Params& p, int64_t begin, int64_t end, Stores stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  if (p.to_fp8) {
    const Quantiser quantise(p.element, p.dtype,
                             {.data = &p.scale, .stride = 0, .num_scales = 1, .num_elements = p.rows.num_elements()});
    convert_elements(p, begin, end, stores, [&](char* to, const char* from, int64_t count, Stores stores) {
      quantise(to, from, {.count = count}, p.scale, stores);
    });
  } else {
    const Dequantise dequantise = dequantise_for(p.element, p.dtype);
    convert_elements(p, begin, end, stores, [&](char* to, const char* from, int64_t count, Stores stores) {
      dequantise(to, from, {.count = count}, p.scale, stores);
    });
  }
}

}  // namespace multikv::cpu
