// The hash of checksum_blocks: the sum of mix(word ^ number of the word * kStep) over the 8-byte words of a message.
#pragma once

#include "cpu/isa/simd/vec.h"

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
constexpr int kScalars = 0;  // words that scalar instructions hash beside each vector
#elif defined(__AVX2__)
#define MULTIKV_HASHES_VECTORS
// The lower halves of 64-bit products, of which AVX2 has only those of 32-bit numbers.
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
constexpr int kScalars = 4;
#endif

inline uint64_t load_word64(const char* from) {
  uint64_t word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

// Sums up the words of a message, which is given piece by piece.
class WordHash {
 public:
  // Adds num_bytes bytes. Only the last piece may have an incomplete word.
  void add(const char* from, int64_t num_bytes) {
    int64_t i = 0;
#ifdef MULTIKV_HASHES_VECTORS
    i = add_vectors(from, num_bytes);
#endif
    for (; i + 8 <= num_bytes; i += 8) sum_ += mix(load_word64(from + i) ^ (number_ += kStep));
    if (i == num_bytes) return;
    uint64_t word = 0;
    std::memcpy(&word, from + i, num_bytes - i);
    sum_ += mix(word ^ (number_ += kStep));
  }
  uint64_t finish(int64_t num_bytes) const { return mix(sum_ ^ static_cast<uint64_t>(num_bytes)); }

 private:
#ifdef MULTIKV_HASHES_VECTORS
  // Adds words while there are enough for a round, and returns how many bytes that were. In a round, vectors hash
  // kVectors * kLanes words, while scalar instructions, which use other units of the core, hash kScalars words.
  int64_t add_vectors(const char* from, int64_t num_bytes) {
    constexpr int kLanes = sizeof(Bytes) / 8, kVectors = 2, kRound = kVectors * (kLanes + kScalars);
    constexpr int kAhead = 2048;  // bytes: how far the loads of a round are prefetched
    int64_t i = 0;
    if (num_bytes < kRound * 8) return 0;
    uint64_t first[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) first[lane] = number_ + (lane + 1) * kStep;
    Bytes numbers = load(first);
    Bytes sums = all_words64(0);
    uint64_t sum = 0;
    for (; i + kRound * 8 <= num_bytes; i += kRound * 8) {
      for (int line = 0; line < kRound * 8; line += kCacheLine) __builtin_prefetch(from + i + kAhead + line, 0, 3);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const char* at = from + i + v * (kLanes + kScalars) * 8;
        sums = add_words64(sums, mix(xor_words64(load(at), numbers)));
        numbers = add_words64(numbers, all_words64((kLanes + kScalars) * kStep));
        const uint64_t number = number_ + kLanes * kStep;
#pragma GCC unroll 4
        for (int k = 0; k < kScalars; ++k) {
          sum += mix(load_word64(at + (kLanes + k) * 8) ^ (number + (k + 1) * kStep));
        }
        number_ += (kLanes + kScalars) * kStep;
      }
    }
    uint64_t lanes[kLanes];
    store(lanes, sums);
    for (const uint64_t lane : lanes) sum += lane;
    sum_ += sum;
    return i;
  }
#endif

  uint64_t sum_ = 0;
  uint64_t number_ = 0;  // the number of the last word * kStep
};

}  // namespace
}  // namespace multikv::cpu
