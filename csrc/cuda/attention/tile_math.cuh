// The operands of matrix instructions, and the softmax of one step. Kernels with different shapes of thread blocks
// multiply the same elements in the same order for every row, whether they compute products or transposed products, and
// so return the same bits.
//
// See multiply_add in vendor/matrix.cuh for the operands. Elements of keys and columns of fp8 values are permuted in
// the operands, so that loads are wide. Elements of queries are permuted like those of keys, which does not change the
// products. A permutation of the columns of values only permutes the columns of the output. The permutations are:
//
//   elements of keys      A key is divided into chunks of 16 bytes, and four chunks form a group. Lane i holds chunk
//                         i % 4 of each group. Multiplication j of a group takes the elements 4 * j .. 4 * j + 3 of
//                         each of its chunks.
//   columns of fp8        Of 16 neighbouring columns, the even ones form a product of 8 columns, and the odd ones form
//   values in tiles       the next product.
#pragma once

#include "cuda/attention/cache_tiles.cuh"
#include "cuda/attention/numbers.cuh"

namespace multikv::gpu {

// The number of multiplications that four chunks of a key take part in.
template <class Store>
inline constexpr int kChunkSteps = kChunkBytes / Store::kBytes / 4;

// Elements 4 * step .. 4 * step + 3 of a chunk, as 16-bit numbers.
template <class Store>
__device__ inline void key_operand(uint32_t (&out)[2], const uint32_t (&chunk)[4], int step) {
  if constexpr (Store::kIsFp8) {
    out[0] = halves_from_fp8<Store::kElement>(chunk[step]);
    out[1] = halves_from_fp8<Store::kElement>(chunk[step] >> 16);
  } else {
    out[0] = chunk[2 * step];
    out[1] = chunk[2 * step + 1];
  }
}

// The first element that a lane's operand of multiplication `step` has, of a query or a key.
template <class Store>
__device__ inline int operand_element(int step) {
  constexpr int kElements = kChunkBytes / Store::kBytes, kSteps = kChunkSteps<Store>;
  return (4 * (step / kSteps) + static_cast<int>(threadIdx.x) % 4) * kElements + 4 * (step % kSteps);
}

// Makes the transposed operand `a` of multiply_add from two neighbouring columns of four values. The lane holds some
// columns of these values, counted from 0:
//
//   a[0]   column 2 * columns       of values 0 and 1
//   a[1]   column 2 * columns + 1   of values 0 and 1
//   a[2]   column 2 * columns       of values 2 and 3
//   a[3]   column 2 * columns + 1   of values 2 and 3
template <class Store, int kWords>
__device__ inline void value_operand(uint32_t (&a)[4], const uint32_t (&values)[4][kWords], int columns) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if constexpr (Store::kIsFp8) {
      const uint32_t order = columns % 2 == 0 ? 0x5140 : 0x7362;
      const uint32_t codes = permute_bytes(values[2 * i][columns / 2], values[2 * i + 1][columns / 2], order);
      a[2 * i] = halves_from_fp8<Store::kElement>(codes);
      a[2 * i + 1] = halves_from_fp8<Store::kElement>(codes >> 16);
    } else {
      a[2 * i] = permute_bytes(values[2 * i][columns], values[2 * i + 1][columns], 0x5410);
      a[2 * i + 1] = permute_bytes(values[2 * i][columns], values[2 * i + 1][columns], 0x7632);
    }
  }
}

// Loads 16 columns of 32 values of a tile as transposed operands `a` of multiply_add. a[step] holds the values
// 16 * step .. 16 * step + 15. `values` is the shared address of the first of the 32 values.
template <class Store, int kRowBytes>
__device__ inline void value_operands(uint32_t (&a)[2][4], uint32_t values, int first_column) {
  using Tile = SharedTile<kRowBytes>;
  const int lane = threadIdx.x % 32;
  if constexpr (Store::kIsFp8) {
    uint32_t words[4];
    load_transposed(words, values + Tile::offset_bytes(lane, first_column / kChunkBytes));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t sorted = permute_bytes(words[i], 0, 0x3120);  // the even column of two values, then the odd one
      a[i / 2][i % 2 * 2] = halves_from_fp8<Store::kElement>(sorted);
      a[i / 2][i % 2 * 2 + 1] = halves_from_fp8<Store::kElement>(sorted >> 16);
    }
  } else {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const int row = 16 * step + lane % 8 + lane / 16 * 8;
      load_transposed(a[step], values + Tile::offset_bytes(row, first_column / 8 + lane / 8 % 2));
    }
  }
}

// Loads 16 columns of 32 values of a tile as operands `b` of multiply_add. b[step][product] holds the values
// 16 * step .. 16 * step + 15 in the 8 columns of one of two products. `values` is the shared address of the first of
// the 32 values.
template <class Store, int kRowBytes>
__device__ inline void load_values(uint32_t (&b)[2][2][2], uint32_t values, int first_column) {
  using Tile = SharedTile<kRowBytes>;
  const int lane = threadIdx.x % 32;
  uint32_t words[4];
  if constexpr (Store::kIsFp8) {
    load_transposed(words, values + Tile::offset_bytes(lane, first_column / kChunkBytes));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t sorted = permute_bytes(words[i], 0, 0x3120);  // the even column of two values, then the odd one
      b[i / 2][0][i % 2] = halves_from_fp8<Store::kElement>(sorted);
      b[i / 2][1][i % 2] = halves_from_fp8<Store::kElement>(sorted >> 16);
    }
  } else {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      load_transposed(words, values + Tile::offset_bytes(16 * step + lane % 16, first_column / 8 + lane / 16));
      b[step][0][0] = words[0];
      b[step][0][1] = words[1];
      b[step][1][0] = words[2];
      b[step][1][1] = words[3];
    }
  }
}

// A lane has two elements of a row of each product. Returns the column of the head that element i (0 or 1) belongs to.
template <class Store>
__device__ inline int value_column(int product, int i) {
  const int pair = threadIdx.x % 4;
  if constexpr (Store::kIsFp8) return product / 2 * 16 + 4 * pair + 2 * i + product % 2;
  else return 8 * product + 2 * pair + i;
}

// The largest score of a row in one step; a score is x * factor, with a factor of the row that is greater than 0. Four
// neighbouring lanes share a row. x(0) .. x(kStep / 4 - 1) return references to the numbers x that this lane has.
template <class X>
__device__ inline float largest_score(X x, float factor) {
  float largest = kNoScore;
#pragma unroll
  for (int i = 0; i < kStep / 4; ++i) largest = fmaxf(largest, x(i));
  largest = fmaxf(largest, shuffle_xor(largest, 1));
  largest = fmaxf(largest, shuffle_xor(largest, 2));
  return __fmul_rn(largest, factor);
}

// Returns the number m that is subtracted from the scores of a row whose largest score so far is `largest`.
template <class Store>
__device__ inline float reference_of(float largest) {
  return largest == kNoScore ? 0.0f : __fsub_rn(largest, Store::kShift);
}

// Turns this lane's numbers x of a step (largest_score) into weights, and returns the sum of these weights. `largest`
// is the row's largest score so far.
template <class Store, class X>
__device__ inline float weigh(X x, float factor, float largest) {
  const float reference = reference_of<Store>(largest);
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kStep / 4; ++i) {
    const float weight = exp2_approximate(__fmaf_rn(x(i), factor, -reference));
    sum = __fadd_rn(sum, weight);
    x(i) = weight;
  }
  return sum;
}

// What o and l of the steps before are multiplied by when the largest score grows from `before` to `largest`. Before
// the first score, o and l are 0, and need no correction.
__device__ inline float correction_of(float before, float largest) {
  return largest == before || before == kNoScore ? 1.0f : exp2_approximate(__fsub_rn(before, largest));
}

// The largest score and the sum of weights of one row, over the steps of a granule so far.
struct RowSums {
  float m = kNoScore, l = 0.0f;  // the largest score; this lane's part of the sum of weights

  // Turns this lane's numbers x of one step into weights. Returns what to multiply the o of the steps before by.
  template <class Store, class X>
  __device__ float add(X x, float factor) {
    const float largest = fmaxf(m, largest_score(x, factor));
    return take(largest, weigh<Store>(x, factor, largest));
  }
  // Does for two rows what add() does, with more independent operations at a time. x(row, i) is the x(i) of a row.
  template <class Store, class X>
  __device__ static void add_two(RowSums (&rows)[2], X x, const float (&factors)[2], float (&corrections)[2]) {
    float largest[2][4], references[2], sums[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < kStep / 4; ++i) {
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        largest[row][i % 4] = i < 4 ? x(row, i) : fmaxf(largest[row][i % 4], x(row, i));
      }
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float(&four)[4] = largest[row];
      four[0] = fmaxf(fmaxf(four[0], four[1]), fmaxf(four[2], four[3]));
    }
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2) {
#pragma unroll
      for (auto& four : largest) four[0] = fmaxf(four[0], shuffle_xor(four[0], distance));
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      largest[row][0] = fmaxf(rows[row].m, __fmul_rn(largest[row][0], factors[row]));
      references[row] = reference_of<Store>(largest[row][0]);
    }
#pragma unroll
    for (int i = 0; i < kStep / 4; ++i) {
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        x(row, i) = exp2_approximate(__fmaf_rn(x(row, i), factors[row], -references[row]));
        sums[row] = __fadd_rn(sums[row], x(row, i));
      }
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) corrections[row] = rows[row].take(largest[row][0], sums[row]);
  }
  // The weight of an x of the step that was added last, as it enters the product with the values.
  template <class Store>
  __device__ float rounded_weight(float x, float factor) const {
    const float weight = exp2_approximate(__fmaf_rn(x, factor, -reference_of<Store>(m)));
    return load_float16(static_cast<uint16_t>(rounded<Store::kProduct>(weight, 0.0f)), Store::kProduct);
  }
  // m and l of the whole row, as join() and finish() take them. All lanes call it.
  template <class Store>
  __device__ float2 total() const {
    float sum = __fadd_rn(l, shuffle_xor(l, 1));
    sum = __fadd_rn(sum, shuffle_xor(sum, 2));
    return {reference_of<Store>(m), sum};
  }

 private:
  // Takes the largest score so far, and the sum of the weights of a step.
  __device__ float take(float largest, float sum) {
    const float correction = correction_of(m, largest);
    m = largest;
    l = __fmaf_rn(l, correction, sum);
    return correction;
  }
};

// The scores or weights of 16 rows and kStep keys: [n] is the result of multiply_add for the keys 8 * n .. 8 * n + 7.
using StepScores = float[kStep / 8][4];

// Rounds weights to 16 bits: the operand `a` of multiply_add for the keys 16 * step .. 16 * step + 15.
template <class Store>
__device__ inline void weights_operand(uint32_t (&a)[4], const StepScores& weights, int step) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float(&block)[4] = weights[2 * step + half];
    a[2 * half] = rounded<Store::kProduct>(block[0], block[1]);
    a[2 * half + 1] = rounded<Store::kProduct>(block[2], block[3]);
  }
}

// Whether one of the two 16-bit elements is infinite or NaN.
template <class Store>
__device__ inline bool has_special(uint32_t elements) {
  constexpr uint32_t kExponent = Store::kProduct == Float::kBFloat16 ? 0x7f80 : 0x7c00;
  return (elements & kExponent) == kExponent || (elements >> 16 & kExponent) == kExponent;
}
// Replaces each of two 16-bit elements that is infinite or NaN by 0.
template <class Store>
__device__ inline uint32_t without_specials(uint32_t elements) {
  constexpr uint32_t kExponent = Store::kProduct == Float::kBFloat16 ? 0x7f80 : 0x7c00;
  if ((elements & kExponent) == kExponent) elements &= 0xffff0000u;
  if ((elements >> 16 & kExponent) == kExponent) elements &= 0xffffu;
  return elements;
}

// Returns a mask of the bits of all infinite and NaN elements in a word of stored elements: two, or four of fp8.
template <class Store>
__device__ inline uint32_t special_codes(uint32_t word) {
  constexpr int kBits = 8 * Store::kBytes;
  constexpr uint32_t kExponent = Store::kElement == Element::kBFloat16  ? 0x7f80
                                 : Store::kElement == Element::kFloat16 ? 0x7c00
                                 : Store::kElement == Element::kE5M2    ? 0x7c
                                                                        : 0x7f;
  constexpr uint32_t kAll = kBits == 8 ? 0xff : 0xffff;
  uint32_t mask = 0;
#pragma unroll
  for (int shift = 0; shift < 32; shift += kBits) {
    if ((word >> shift & kExponent) == kExponent) mask |= kAll << shift;
  }
  return mask;
}
template <class Store>
__device__ inline bool has_special_code(uint32_t word) {
  return special_codes<Store>(word) != 0;
}
template <class Store>
__device__ inline uint32_t without_special_codes(uint32_t word) {
  return word & ~special_codes<Store>(word);
}

// Returns an element of a tile of values.
template <class Store, int kRowBytes>
__device__ inline float value_at(const char* values, int row, int column) {
  constexpr int kChunkElements = kChunkBytes / Store::kBytes;
  const char* chunk = values + SharedTile<kRowBytes>::offset_bytes(row, column / kChunkElements);
  if constexpr (Store::kIsFp8) {
    return half_to_float(static_cast<uint16_t>(
        halves_from_fp8<Store::kElement>(reinterpret_cast<const uint8_t*>(chunk)[column % kChunkElements])));
  } else {
    return load_float16(reinterpret_cast<const uint16_t*>(chunk)[column % kChunkElements], Store::kProduct);
  }
}

// The weights of kStep keys as operands of multiply_add: StepOperands of 16 rows, TransposedOperands of 8 rows for
// transposed products.
using StepOperands = uint32_t[kStep / 16][4];
using TransposedOperands = uint32_t[kStep / 16][2];

// Computes o += weights * values for 32 keys and 16 columns. The weights are the operands weights[tile][first_step] and
// weights[tile][first_step + 1], of 16 keys each. The results are o[tile][product] and o[tile][product + 1], of 8
// columns each. `values` is the shared address of the first of the 32 values.
//
// Rows that see different keys share the matrix instruction, and 0 * NaN is NaN. So if kIsPartial, infinities and NaN
// are multiplied as 0; the return value says whether this lane saw one, and the caller adds them to the rows that see
// them.
template <class Store, int kRowBytes, bool kIsPartial, int kTiles, int kProducts>
__device__ inline bool multiply_32_values(float (&o)[kTiles][kProducts][4], int product,
                                          const StepOperands (&weights)[kTiles], int first_step, uint32_t values,
                                          int first_column) {
  bool special = false;
  uint32_t b[2][2][2];
  load_values<Store, kRowBytes>(b, values, first_column);
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    if constexpr (kIsPartial) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t& elements = b[step][i / 2][i % 2];
        special = special || has_special<Store>(elements);
        elements = without_specials<Store>(elements);
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const auto& a = weights[tile][first_step + step];
      multiply_add<Store::kProduct>(o[tile][product], a, b[step][0][0], b[step][0][1]);
      multiply_add<Store::kProduct>(o[tile][product + 1], a, b[step][1][0], b[step][1][1]);
    }
  }
  return special;
}

// Does what multiply_32_values does, for kStep keys.
template <class Store, int kRowBytes, bool kIsPartial, int kTiles, int kProducts>
__device__ inline bool multiply_values(float (&o)[kTiles][kProducts][4], int product,
                                       const StepOperands (&weights)[kTiles], uint32_t values, int first_column) {
  bool special = false;
#pragma unroll
  for (int first = 0; first < kStep; first += 32) {
    const bool found = multiply_32_values<Store, kRowBytes, kIsPartial>(o, product, weights, first / 16,
                                                                        values + first * kRowBytes, first_column);
    special = special || found;
  }
  return special;
}

}  // namespace multikv::gpu
