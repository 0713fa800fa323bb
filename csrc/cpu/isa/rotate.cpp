#include <concepts>

#include "cpu/isa/cache/token_runs.h"
#include "cpu/isa/codec/dequantise.h"
#include "cpu/isa/codec/quantise.h"
#include "cpu/isa/codec/reposition.h"
#include "params/rotate_params.h"

namespace multikv::cpu {
namespace {

// The part of a head that is processed at a time: `count` pairs, whose elements are first .. first + count - 1 and
// second .. second + count - 1. If the pairs are neighbouring elements (is_neox is false), the 2 * count elements are
// consecutive, and `second` is where their second half begins.
struct PairChunk {
  int64_t begin, count;  // pairs
  int64_t first, second;

  bool is_contiguous() const { return second == first + count; }
};

// Calls body(PairChunk) until all pairs are covered.
template <std::invocable<const PairChunk&> Body>
void for_each_chunk(const RotateCachedKeysParams& p, const Body& body) {
  for (int64_t begin = 0; begin < p.num_pairs(); begin += RopeTable::kMaxPairs) {
    const int64_t left = p.num_pairs() - begin, count = left < RopeTable::kMaxPairs ? left : RopeTable::kMaxPairs;
    const int64_t first = p.rotary_offset + (p.is_neox ? begin : 2 * begin);
    body(PairChunk{begin, count, first, p.is_neox ? first + p.num_pairs() : first + count});
  }
}

// Elements of a head of a cache, which lie in vectors.
class HeadElements {
 public:
  explicit HeadElements(const PackedKeyCache& cache)
      : vector_size_(cache.vector_size.signed_value()), stride_vector_bytes_(cache.stride_vector_bytes),
        element_bytes_(cache.codec.num_bytes(1)) {}

  // Returns the offset of an element from the start of its head, in bytes.
  int64_t offset(int64_t element) const {
    return element / vector_size_ * stride_vector_bytes_ + element % vector_size_ * element_bytes_;
  }
  bool are_contiguous(int64_t first, int64_t count) const { return first % vector_size_ + count <= vector_size_; }

  void read(char* to, const char* head, int64_t first, int64_t count) const {
    for_each_piece(first, count, [&](int64_t done, int64_t at, int64_t bytes) { copy(to + done, head + at, bytes); });
  }
  void write(char* head, const char* from, int64_t first, int64_t count) const {
    for_each_piece(first, count, [&](int64_t done, int64_t at, int64_t bytes) { copy(head + at, from + done, bytes); });
  }

 private:
  // Most pieces are vectors of 16 bytes. For them, memcpy is one instruction instead of a call.
  static void copy(char* to, const char* from, int64_t bytes) {
    if (bytes == 16) std::memcpy(to, from, 16);
    else std::memcpy(to, from, bytes);
  }

  // Calls body(bytes before the piece, offset from the start of the head, bytes) for each contiguous piece.
  template <class Body>
  void for_each_piece(int64_t first, int64_t count, const Body& body) const {
    int64_t vector_bytes = first / vector_size_ * stride_vector_bytes_, in_vector = first % vector_size_;
    for (int64_t done = 0; done < count;) {
      const int64_t left = vector_size_ - in_vector, size = left < count - done ? left : count - done;
      body(done * element_bytes_, vector_bytes + in_vector * element_bytes_, size * element_bytes_);
      done += size;
      vector_bytes += stride_vector_bytes_;
      in_vector = 0;
    }
  }

  int64_t vector_size_, stride_vector_bytes_, element_bytes_;
};

// Moves keys whose elements are floats of type T.
template <FloatElement T>
class FloatMover {
 public:
  using Value = T;
  explicit FloatMover(const RotateCachedKeysParams& p) : is_neox_(p.is_neox) {}

  // Moves the elements of a chunk. `second` is not read if the pairs are neighbours.
  void move(char* first, char* second, int64_t, const PairChunk& chunk, const RepositionTable& table) const {
    if (is_neox_) Reposition<T>::move_halves(first, second, chunk.count, table);
    else Reposition<T>::move_neighbours(first, chunk.count, table);
  }

 private:
  const bool is_neox_;
};

// Moves keys that are fp8 codes.
class CodeMover {
 public:
  using Value = float;
  explicit CodeMover(const RotateCachedKeysParams& p)
      : cache_(p.cache), is_neox_(p.is_neox), dequantise_(dequantise_for(p.codec().element, Float::kFloat32)),
        quantise_(p.codec().element, Float::kFloat32,
                  {.data = cache_.scale,
                   .stride = cache_.scale_stride_head,
                   .num_scales = cache_.scale_stride_head == 0 ? 1 : p.num_heads,
                   .num_elements = p.slots.num_tokens * p.num_heads * p.rotary_size}) {}

  void move(char* first, char* second, int64_t head, const PairChunk& chunk, const RepositionTable& table) {
    const float scale = *cache_.scale_of(head);
    const int64_t count = chunk.count;
    const bool is_one = second == first + count;
    dequantise(first, values_, is_one ? 2 * count : count, scale);
    if (!is_one) dequantise(second, values_ + count, count, scale);
    char* values = reinterpret_cast<char*>(values_);
    if (is_neox_) Reposition<float>::move_halves(values, values + count * kFloatBytes, count, table);
    else Reposition<float>::move_neighbours(values, count, table);
    quantise_(first, values, {.count = is_one ? 2 * count : count}, scale, Stores::kOrdinary);
    if (!is_one) quantise_(second, values + count * kFloatBytes, {.count = count}, scale, Stores::kOrdinary);
  }

 private:
  static constexpr int64_t kFloatBytes = sizeof(float);

  void dequantise(const char* codes, float* to, int64_t count, float scale) const {
    dequantise_(reinterpret_cast<char*>(to), codes, {.count = count}, scale, Stores::kOrdinary);
  }

  const PackedKeyCache& cache_;
  const bool is_neox_;
  const Dequantise dequantise_;
  const Quantiser quantise_;
  alignas(64) float values_[2 * RopeTable::kMaxPairs];
};

// Moves the tokens [begin, end).
template <class Mover>
void move_tokens(const RotateCachedKeysParams& p, int64_t begin, int64_t end) {
  Mover mover(p);
  const HeadElements elements(p.cache);
  const int64_t element_bytes = p.codec().num_bytes(1);
  RepositionTable table;
  alignas(64) char buffer[2 * RopeTable::kMaxPairs * sizeof(float)];
  const auto move_head = [&](char* head_data, int64_t head, const PairChunk& chunk) {
    if (elements.are_contiguous(chunk.first, chunk.count) && elements.are_contiguous(chunk.second, chunk.count) &&
        (p.is_neox || elements.are_contiguous(chunk.first, 2 * chunk.count))) {
      mover.move(head_data + elements.offset(chunk.first), head_data + elements.offset(chunk.second), head, chunk,
                 table);
      return;
    }
    char* second = buffer + chunk.count * element_bytes;
    elements.read(buffer, head_data, chunk.first, chunk.count);
    elements.read(second, head_data, chunk.second, chunk.count);
    mover.move(buffer, second, head, chunk, table);
    elements.write(head_data, buffer, chunk.first, chunk.count);
    elements.write(head_data, second, chunk.second, chunk.count);
  };
  for_each_token(p.slots, p.cache.blocks, begin, end, [&](int64_t token, BlockOffset at) {
    const int64_t old_position = p.old_positions.at(token), new_position = p.new_positions.at(token);
    if (old_position == new_position) return;
    char* entry = p.cache.block(at.block) + at.offset * p.cache.stride_row_bytes;
    for_each_chunk(p, [&](const PairChunk& chunk) {
      with_float(p.table_dtype, [&]<FloatElement Table>() {
        table.read<Table>(p.cos_sin_cache.row(old_position), p.cos_sin_cache.row(new_position), chunk.begin,
                          chunk.count, p.num_pairs(), Reposition<typename Mover::Value>::order(p.is_neox));
      });
      for (int64_t head = 0; head < p.num_heads; ++head) {
        move_head(entry + head * p.cache.stride_head_bytes, head, chunk);
      }
    });
  });
}

}  // namespace

template <>
void run<kIsa>(const RotateCachedKeysParams& p, int64_t begin, int64_t end, Stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  switch (p.codec().element) {
    case Element::kFloat32: return move_tokens<FloatMover<float>>(p, begin, end);
    case Element::kFloat16: return move_tokens<FloatMover<Float16>>(p, begin, end);
    case Element::kBFloat16: return move_tokens<FloatMover<BFloat16>>(p, begin, end);
    case Element::kE4M3FN:
    case Element::kE5M2:
    case Element::kE4M3FNUZ:
    case Element::kE5M2FNUZ: return move_tokens<CodeMover>(p, begin, end);
    case Element::kInt8:
    case Element::kInt4:
    case Element::kE2M1: break;
  }
}

}  // namespace multikv::cpu
