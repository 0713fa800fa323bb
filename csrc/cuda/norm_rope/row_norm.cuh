// The root mean square norm (params/norm_rope_params.h): the tree of additions, and the norm of elements in registers.
#pragma once

#include "cuda/core/pack.cuh"
#include "params/norm_rope_params.h"

namespace multikv::gpu {

// Returns the sum of kCount values, with kCount a power of two: level by level, neighbours are added.
template <int kCount>
__device__ __forceinline__ float sum_in_tree(float (&values)[kCount]) {
#pragma unroll
  for (int count = kCount / 2; count > 0; count /= 2) {
#pragma unroll
    for (int i = 0; i < count; ++i) values[i] = values[2 * i] + values[2 * i + 1];
  }
  return values[0];
}

// Returns the sum of the squares of kCount elements, with kCount a power of two.
template <Float kDtype, int kCount>
__device__ __forceinline__ float sum_of_squares(const uint32_t* words) {
  float squares[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float x = element<kDtype>(words, i);
    squares[i] = x * x;
  }
  return sum_in_tree(squares);
}

// Replaces each value by its sum over `count` neighbouring lanes, with `count` a power of two. All lanes of the warp
// must call.
template <int kValues>
__device__ __forceinline__ void sum_of_lanes(float (&values)[kValues], int count) {
#pragma unroll
  for (int mask = 1; mask < 32; mask *= 2) {
    if (mask < count) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) values[i] += shuffle_xor(values[i], mask);
    }
  }
}

// Returns what the elements of a row are multiplied by. The square root and the divisions are those of IEEE 754. If the
// size is a power of two, the product with its reciprocal is the quotient: 0x7f000000 is 254 in the exponent field, and
// 2^-e has the exponent field 254 - (127 + e).
__device__ __forceinline__ float reciprocal_root(const RmsNorm& norm, float sum_of_squares, float size) {
  const uint32_t bits = __float_as_uint(size);
  const bool is_power = (bits & 0x7fffff) == 0;
  const float mean = is_power ? sum_of_squares * __uint_as_float(0x7f000000u - bits) : sum_of_squares / size;
  return 1.0f / sqrtf(mean + norm.eps);
}

// Reads kCount elements as one vector if kWide and `count` is at least kCount. Otherwise it reads the first `count` one
// by one, and the others are zeros.
template <Float kDtype, int kCount, bool kWide, bool kOnce = false>
__device__ __forceinline__ FloatPack<kDtype, kCount> read_elements(const char* from, int64_t count) {
  using Vector = FloatPack<kDtype, kCount>;
  if constexpr (kWide) {
    if (count >= kCount) return Vector::template read<kOnce>(from);
  }
  Vector vector;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(Vector)) / 4; ++i) {
    if constexpr (kDtype == Float::kFloat32) {
      vector.words[i] = i < count ? reinterpret_cast<const uint32_t*>(from)[i] : 0;
    } else {
      const auto* elements = reinterpret_cast<const uint16_t*>(from);
      const uint32_t low = 2 * i < count ? elements[2 * i] : 0, high = 2 * i + 1 < count ? elements[2 * i + 1] : 0;
      vector.words[i] = low | high << 16;
    }
  }
  return vector;
}

// Writes kCount elements as one vector if kWide and `count` is at least kCount. Otherwise it writes the first `count`
// one by one.
template <Float kDtype, int kCount, bool kWide, bool kOnce = false>
__device__ __forceinline__ void write_elements(char* to, const FloatPack<kDtype, kCount>& vector, int64_t count) {
  if constexpr (kWide) {
    if (count >= kCount) return vector.template write<kOnce>(to);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i >= count) continue;
    if constexpr (kDtype == Float::kFloat32) reinterpret_cast<uint32_t*>(to)[i] = vector.words[i];
    else reinterpret_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(vector.words[i / 2] >> (i % 2 * 16));
  }
}

// The weights of kCount neighbouring elements of type kDtype. read() issues the loads, and normed() consumes them.
template <Float kDtype, int kCount>
class Weights {
 public:
  Weights() = default;  // normed() only multiplies by the factor
  // Reads the weights from `at` on as vectors if kWide and `count` is at least kCount, else `count` of them.
  template <bool kWide>
  __device__ __forceinline__ void read(const NormWeight& weight, float bias, int64_t at, int64_t count) {
    if (!weight.is_given()) return;
    is_given_ = true;
    is_float32_ = weight.dtype == Float::kFloat32;
    bias_ = bias;
    if (is_float32_) floats_ = read_elements<Float::kFloat32, kCount, kWide>(weight.data + at * 4, count);
    else elements_ = read_elements<kDtype, kCount, kWide>(weight.data + at * num_bytes(kDtype), count);
  }
  // Returns the elements, multiplied by `factor` and, if there are weights, by these.
  __device__ __forceinline__ FloatPack<kDtype, kCount> normed(const FloatPack<kDtype, kCount>& vector,
                                                              float factor) const {
    const auto scaled = [&](int i) { return element<kDtype>(vector.words, i) * factor; };
    if (!is_given_) return pack_floats<kDtype, kCount>(scaled);
    if (is_float32_) {
      return pack_floats<kDtype, kCount>(
          [&](int i) { return scaled(i) * (element<Float::kFloat32>(floats_.words, i) + bias_); });
    }
    return pack_floats<kDtype, kCount>(
        [&](int i) { return scaled(i) * (element<kDtype>(elements_.words, i) + bias_); });
  }
  // Returns weight i plus the bias, or 1 if there are no weights.
  __device__ __forceinline__ float biased(int i) const {
    if (!is_given_) return 1.0f;
    return (is_float32_ ? element<Float::kFloat32>(floats_.words, i) : element<kDtype>(elements_.words, i)) + bias_;
  }

 private:
  bool is_given_ = false, is_float32_ = false;
  float bias_ = 0.0f;
  union {
    FloatPack<Float::kFloat32, kCount> floats_;
    FloatPack<kDtype, kCount> elements_;
  };
};

// The weights of kCount neighbouring elements, with the bias added. They are held for many rows.
template <Float kDtype, int kCount>
struct BiasedWeights {
  float values[kCount];

  __device__ static __forceinline__ BiasedWeights of(const Weights<kDtype, kCount>& weights) {
    BiasedWeights biased;
#pragma unroll
    for (int i = 0; i < kCount; ++i) biased.values[i] = weights.biased(i);
    return biased;
  }
  __device__ __forceinline__ FloatPack<kDtype, kCount> normed(const FloatPack<kDtype, kCount>& vector,
                                                              float factor) const {
    return pack_floats<kDtype, kCount>([&](int i) { return element<kDtype>(vector.words, i) * factor * values[i]; });
  }
};

// Adds the sums of equal pieces of a row, in the order of the row. sums[k] is the sum of 2^k pieces, if bit k of the
// number of pieces is set.
class PieceSums {
 public:
  __device__ __forceinline__ void add(float sum) {
    bool is_carried = true;
#pragma unroll
    for (int k = 0; k < kLevels; ++k) {
      const bool is_set = (num_pieces_ >> k & 1) != 0;
      if (is_carried && is_set) sum = sums_[k] + sum;
      if (is_carried && !is_set) sums_[k] = sum;
      is_carried = is_carried && is_set;
    }
    ++num_pieces_;
  }
  __device__ __forceinline__ float total() const {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < kLevels; ++k) {
      if ((num_pieces_ >> k & 1) != 0) sum = sums_[k] + sum;
    }
    return sum;
  }

 private:
  static constexpr int kLevels = 24;
  uint32_t num_pieces_ = 0;
  float sums_[kLevels] = {};
};

// Returns the sum of the values of all threads of a thread block of 4 warps. `shared` has a float for each warp.
__device__ __forceinline__ float sum_of_threads(float value, float* shared) {
  float values[1] = {value};
  sum_of_lanes(values, 32);
  __syncthreads();  // the values of the call before have been read
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = values[0];
  __syncthreads();
  return (shared[0] + shared[1]) + (shared[2] + shared[3]);
}

}  // namespace multikv::gpu
