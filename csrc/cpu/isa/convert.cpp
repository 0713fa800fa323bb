#include "cpu/isa/cache/strided.h"
#include "cpu/isa/codec/dequantise.h"
#include "cpu/isa/codec/quantise.h"

namespace multikv::cpu {
namespace {

// The two sides, in elements of so many bytes.
struct Side {
  char* data;
  int64_t bytes;
  char* at(int64_t element) const { return data + element * bytes; }
};

// A few bytes, of which one, two and four are the most frequent.
void copy_few(char* to, const char* from, int64_t num_bytes) {
  switch (num_bytes) {
    case 1: std::memcpy(to, from, 1); break;
    case 2: std::memcpy(to, from, 2); break;
    case 4: std::memcpy(to, from, 4); break;
    default: std::memcpy(to, from, num_bytes);
  }
}

// Elements [begin, end); convert(to, from, count, stores) does it for those that lie dense.
template <class Convert>
void convert_elements(const ConvertFp8Params& p, Side src, Side dst, int64_t begin, int64_t end, Stores stores,
                      const Convert& convert) {
  constexpr int64_t kShort = 32, kMost = 256;
  PieceWalker read(p.rows, begin);
  if (p.rows.row_size >= kShort) {
    for (int64_t i = begin; i < end;) {
      const auto piece = read.next(end - i);
      convert(dst.at(piece.dst), src.at(piece.src), piece.count, stores);
      i += piece.count;
    }
    finish(stores);
    return;
  }
  // Short rows, single elements among them, are collected, converted together, and dealt out.
  alignas(64) char inputs[kMost * 4], outputs[kMost * 4];
  PieceWalker write = read;
  for (int64_t i = begin; i < end; i += kMost) {
    const int64_t count = end - i < kMost ? end - i : kMost;
    for (int64_t j = 0; j < count;) {
      const auto piece = read.next(count - j);
      copy_few(inputs + j * src.bytes, src.at(piece.src), piece.count * src.bytes);
      j += piece.count;
    }
    convert(outputs, inputs, count, Stores::kOrdinary);
    for (int64_t j = 0; j < count;) {
      const auto piece = write.next(count - j);
      copy_few(dst.at(piece.dst), outputs + j * dst.bytes, piece.count * dst.bytes);
      j += piece.count;
    }
  }
}

}  // namespace

template <>
void convert_fp8<kIsa>(const ConvertFp8Params& p, int64_t begin, int64_t end, Stores stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  auto* src = static_cast<char*>(const_cast<void*>(p.src));
  auto* dst = static_cast<char*>(p.dst);
  if (p.to_fp8) {
    const Quantiser quantise(p.format, p.dtype, {&p.scale, 0, 1, p.rows.num_rows * p.rows.row_size});
    convert_elements(p, {src, num_bytes(p.dtype)}, {dst, 1}, begin, end, stores,
                     [&](char* to, const char* from, int64_t count, Stores stores) {
                       quantise(to, from, {.count = count}, p.scale, stores);
                     });
  } else {
    const Dequantise dequantise = dequantise_for(p.format, p.dtype);
    convert_elements(p, {src, 1}, {dst, num_bytes(p.dtype)}, begin, end, stores,
                     [&](char* to, const char* from, int64_t count, Stores stores) {
                       dequantise(to, from, count, p.scale, stores, nullptr);
                     });
  }
}

}  // namespace multikv::cpu
