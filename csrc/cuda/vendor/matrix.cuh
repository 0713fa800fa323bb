// Matrix instructions, and the copies and conversions that feed them. hip/vendor/matrix.cuh is AMD's twin.
#pragma once

#include "vendor/gpu.cuh"

namespace multikv::gpu {

// Whether kernels may use the functions of this file.
inline constexpr bool kHasMatrixInstructions = true;

// The address of shared memory as instructions take it.
__device__ inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Start an asynchronous copy of 16 bytes to shared memory, or, unless is_valid, write zeros and read nothing.
__device__ inline void copy_async(uint32_t to, const void* from, bool is_valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(is_valid ? 16 : 0)
               : "memory");
}
__device__ inline void copy_async(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
// Makes the compiler keep an address in registers, instead of adding up its parts wherever it is used.
__device__ inline void keep(const char*& address) { asm volatile("" : "+l"(address)); }
// Starts an asynchronous copy of 16 bytes to shared memory if does_copy.
__device__ inline void copy_async_if(bool does_copy, uint32_t to, const void* from) {
  asm volatile(
      "{ .reg .pred p; setp.ne.u32 p, %2, 0; @p cp.async.cg.shared.global.L2::128B [%0], [%1], 16; }" ::"r"(to),
      "l"(from), "r"(static_cast<uint32_t>(does_copy))
      : "memory");
}
// Start a load of 8 or 16 aligned bytes that are read once. Unless does_load, `words` stay.
__device__ inline void load_vector(uint32_t (&words)[2], const void* from) {
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];"
               : "=r"(words[0]), "=r"(words[1])
               : "l"(from));
}
__device__ inline void load_vector(uint32_t (&words)[4], const void* from) {
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "l"(from));
}
__device__ inline void load_vector_if(bool does_load, uint32_t (&words)[2], const void* from) {
  asm volatile("{ .reg .pred p; setp.ne.u32 p, %3, 0; @p ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2]; }"
               : "+r"(words[0]), "+r"(words[1])
               : "l"(from), "r"(static_cast<uint32_t>(does_load)));
}
__device__ inline void load_vector_if(bool does_load, uint32_t (&words)[4], const void* from) {
  asm volatile(
      "{ .reg .pred p; setp.ne.u32 p, %5, 0; @p ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4]; }"
      : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3])
      : "l"(from), "r"(static_cast<uint32_t>(does_load)));
}
// Closes the group of the copies that this thread has started since the last call.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kGroups of this thread's groups are in flight.
template <int kGroups>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// Waits for all lanes of the warp; then they see each other's writes to shared memory.
__device__ inline void sync_warp() { __syncwarp(); }

// Loads four matrices of 8 x 8 16-bit elements from shared memory, and transposes each. `row_address` of lane i is the
// address of one row: number i % 8 of matrix i / 8. out[m] of lane i gets two elements of matrix m: 2 * (i % 4) and
// 2 * (i % 4) + 1 of row i / 4 of the transposed matrix.
__device__ inline void load_transposed(uint32_t (&out)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(row_address)
               : "memory");
}

// Loads 16 aligned bytes of shared memory.
__device__ inline void load_chunk(uint32_t (&out)[4], uint32_t address) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

// c += a * b for a 16 x 16 matrix a and a 16 x 8 matrix b of type kDtype. Lane i holds these elements, where r = i / 4
// and p = 2 * (i % 4). A register of a or b holds two elements.
//
//                row            column
//   a[0]         r              p, p + 1
//   a[1]         r + 8          p, p + 1
//   a[2]         r              p + 8, p + 9
//   a[3]         r + 8          p + 8, p + 9
//   b0           p, p + 1       r
//   b1           p + 8, p + 9   r
//   c[0], c[1]   r              p, p + 1
//   c[2], c[3]   r + 8          p, p + 1
template <Float kDtype>
__device__ inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kDtype == Float::kBFloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Decodes two codes, of e4m3fn or e5m2, to two float16 numbers, which is exact.
template <Element kElement>
__device__ inline uint32_t halves_from_fp8(uint32_t codes) {
  if constexpr (kElement == Element::kE5M2) {
    return __byte_perm(codes, 0, 0x1404);  // e5m2 is the upper byte of a float16
  } else if constexpr (has_fp8_instruction<kElement>()) {
    uint32_t halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(codes)));
    return halves;
  } else {
    constexpr Fp8Layout layout = layout_of(kElement);
    return floats_to_half(decode_fp8(static_cast<uint8_t>(codes), layout),
                          decode_fp8(static_cast<uint8_t>(codes >> 8), layout));
  }
}

// Returns four bytes chosen from two words: digit i of `order` is the index of byte i; 4 to 7 are those of `high`.
__device__ inline uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t order) {
  return __byte_perm(low, high, order);
}

}  // namespace multikv::gpu
