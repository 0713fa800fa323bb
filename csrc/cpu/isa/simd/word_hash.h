// The hash of checksum_blocks: mix(sum ^ number of bytes), where `sum` is the sum of mix(word ^ n * kStep) over the
// 8-byte words of a message, and n is the number of the word: 1 for the first.
#pragma once

#include "cpu/isa/simd/prefetch.h"

namespace multikv::cpu {
namespace {

constexpr uint64_t kStep = 0x9e3779b97f4a7c15, kFactor1 = 0xbf58476d1ce4e5b9, kFactor2 = 0x94d049bb133111eb;

// The last steps of the random number generator splitmix64.
inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * kFactor1;
  x = (x ^ (x >> 27)) * kFactor2;
  return x ^ (x >> 31);
}

#if defined(__AVX512BW__)
#define MULTIKV_HASHES_VECTORS
inline __m512i mix(__m512i x) {
  const auto all = [](uint64_t value) { return _mm512_set1_epi64(static_cast<int64_t>(value)); };
  x = _mm512_mullo_epi64(_mm512_xor_si512(x, _mm512_srli_epi64(x, 30)), all(kFactor1));
  x = _mm512_mullo_epi64(_mm512_xor_si512(x, _mm512_srli_epi64(x, 27)), all(kFactor2));
  return _mm512_xor_si512(x, _mm512_srli_epi64(x, 31));
}
inline __m512i add_words64(__m512i a, __m512i b) { return _mm512_add_epi64(a, b); }
inline __m512i xor_words64(__m512i a, __m512i b) { return _mm512_xor_si512(a, b); }
inline __m512i all_words64(uint64_t x) { return _mm512_set1_epi64(static_cast<int64_t>(x)); }
// A round (add_round) hashes kVectors vectors with vector instructions, and kScalars words with scalar instructions.
constexpr int kVectors = 2, kScalars = 0;
#elif defined(__AVX2__)
#define MULTIKV_HASHES_VECTORS
// Returns the lower 64 bits of each product x * factor. AVX2 multiplies only 32-bit numbers, so that each product is
// composed of three products of 32-bit halves.
inline __m256i product64(__m256i x, uint64_t factor) {
  const __m256i low = _mm256_set1_epi64x(static_cast<int64_t>(factor));
  const __m256i high = _mm256_set1_epi64x(static_cast<int64_t>(factor >> 32));
  const __m256i crossed = _mm256_add_epi64(_mm256_mul_epu32(_mm256_srli_epi64(x, 32), low), _mm256_mul_epu32(x, high));
  return _mm256_add_epi64(_mm256_mul_epu32(x, low), _mm256_slli_epi64(crossed, 32));
}
inline __m256i mix(__m256i x) {
  x = product64(_mm256_xor_si256(x, _mm256_srli_epi64(x, 30)), kFactor1);
  x = product64(_mm256_xor_si256(x, _mm256_srli_epi64(x, 27)), kFactor2);
  return _mm256_xor_si256(x, _mm256_srli_epi64(x, 31));
}
inline __m256i add_words64(__m256i a, __m256i b) { return _mm256_add_epi64(a, b); }
inline __m256i xor_words64(__m256i a, __m256i b) { return _mm256_xor_si256(a, b); }
inline __m256i all_words64(uint64_t x) { return _mm256_set1_epi64x(static_cast<int64_t>(x)); }
constexpr int kVectors = 3, kScalars = 4;
#endif

inline uint64_t load_word64(const char* from) {
  uint64_t word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

// A part of a message. It begins with a whole word: first_byte, its offset in the message, is a multiple of 8.
struct MessagePart {
  const char* data;
  int64_t num_bytes, first_byte;
};

// Sums up the words of a message, whose parts are added in any order.
class WordHash {
 public:
  // Only the last part of the message may end with an incomplete word. `ahead` is the distance in bytes from the loads
  // to what is prefetched.
  void add(const MessagePart& part, [[maybe_unused]] int64_t ahead) {
    const char* const from = part.data;
    const int64_t num_bytes = part.num_bytes;
    number_ = static_cast<uint64_t>(part.first_byte / 8) * kStep;
    int64_t i = 0;
#ifdef MULTIKV_HASHES_VECTORS
    for (; i + kRoundBytes <= num_bytes; i += kRoundBytes) add_round(from + i, ahead);
    if (i < num_bytes) prefetch(from + i + ahead);
    for (; i + kVectorBytes <= num_bytes; i += kVectorBytes) add_vector(from + i);
#endif
    for (; i + 8 <= num_bytes; i += 8) sum_ += mix(load_word64(from + i) ^ (number_ += kStep));
    if (i == num_bytes) return;
    uint64_t word = 0;
    std::memcpy(&word, from + i, num_bytes - i);
    sum_ += mix(word ^ (number_ += kStep));
  }
  uint64_t finish(int64_t num_bytes) const {
    uint64_t sum = sum_;
#ifdef MULTIKV_HASHES_VECTORS
    uint64_t lanes[kLanes];
    store(lanes, sums_);
    for (const uint64_t lane : lanes) sum += lane;
#endif
    return mix(sum ^ static_cast<uint64_t>(num_bytes));
  }

 private:
#ifdef MULTIKV_HASHES_VECTORS
  static constexpr int kLanes = sizeof(Bytes) / 8;
  static constexpr int64_t kVectorBytes = sizeof(Bytes), kRoundBytes = kVectors * kVectorBytes + kScalars * 8;
  static_assert(kRoundBytes % kCacheLine == 0);  // a prefetch for each line

  [[gnu::always_inline]] void add_vector(const char* from) {
    const Bytes numbers = add_words64(all_words64(number_), lane_steps());
    sums_ = add_words64(sums_, mix(xor_words64(load(from), numbers)));
    number_ += kLanes * kStep;
  }

  // Adds the words of a round: vectors hash most of them, while scalar instructions, which use other units of the core,
  // hash the last kScalars words.
  [[gnu::always_inline]] void add_round(const char* from, int64_t ahead) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < kRoundBytes; i += kCacheLine) prefetch(from + i + ahead);
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) add_vector(from + k * kVectorBytes);
#pragma GCC unroll 4
    for (int k = 0; k < kScalars; ++k) {
      sum_ += mix(load_word64(from + kVectors * kVectorBytes + k * 8) ^ (number_ += kStep));
    }
  }

  // Returns kStep, 2 * kStep, ...
  static Bytes lane_steps() {
    uint64_t steps[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) steps[lane] = (lane + 1) * kStep;
    return load(steps);
  }

  Bytes sums_ = all_words64(0);
#endif
  uint64_t sum_ = 0;
  uint64_t number_ = 0;  // kStep times the number of the last word that was added
};

}  // namespace
}  // namespace multikv::cpu
