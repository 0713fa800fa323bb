// Instructions of Hopper GPUs for groups of four warps: asynchronous matrix instructions that read shared memory, and
// the barriers around them. hip/vendor/warpgroup.cuh is AMD's twin.
#pragma once

#include "vendor/gpu.cuh"

// Whether this pass of the compiler knows the instructions. Without them, the functions do nothing.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define MULTIKV_WARPGROUP_PASS 1
#else
#define MULTIKV_WARPGROUP_PASS 0
#endif

namespace multikv::gpu {

// Whether the library holds code for GPUs with these instructions.
#ifdef MULTIKV_HAS_SM90A
inline constexpr bool kHasWarpgroupInstructions = true;
#else
inline constexpr bool kHasWarpgroupInstructions = false;
#endif

// Whether the calling kernel was compiled with these instructions.
inline constexpr bool kCompilesWarpgroups = MULTIKV_WARPGROUP_PASS;

// A warpgroup is four neighbouring warps, the first of which has a number divisible by 4.
inline constexpr int kWarpgroupThreads = 128;

// Changes how many registers the calling warpgroup's threads have.
template <int kCount>
__device__ inline void release_registers() {
#if MULTIKV_WARPGROUP_PASS
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}
template <int kCount>
__device__ inline void take_registers() {
#if MULTIKV_WARPGROUP_PASS
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}

// A barrier in shared memory. A phase ends when `count` threads have arrived; then the next phase begins. Writes to
// shared memory before an arrival are visible to threads that have waited for the end of the phase.
class Barrier {
 public:
  __device__ void start([[maybe_unused]] uint32_t count) {
#if MULTIKV_WARPGROUP_PASS
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address()), "r"(count) : "memory");
#endif
  }
  __device__ void arrive() {
#if MULTIKV_WARPGROUP_PASS
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(address()) : "memory");
#endif
  }
  // Waits for the end of a phase: an even one if `parity` is 0, otherwise an odd one.
  __device__ void wait([[maybe_unused]] uint32_t parity) {
#if MULTIKV_WARPGROUP_PASS
    asm volatile(
        "{ .reg .pred done; retry: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1; "
        "@!done bra retry; }" ::"r"(address()),
        "r"(parity)
        : "memory");
#endif
  }

 private:
  __device__ uint32_t address() const { return static_cast<uint32_t>(__cvta_generic_to_shared(&state_)); }
  uint64_t state_;
};

// Waits for all threads of a warpgroup at the named barrier `id`, from 1 to 15, which no other warpgroup uses. Returns
// whether `predicate` holds for any of them.
__device__ inline bool any_in_warpgroup([[maybe_unused]] int id, bool predicate) {
#if MULTIKV_WARPGROUP_PASS
  uint32_t any;
  asm volatile("{ .reg .pred p, q; setp.ne.u32 p, %1, 0; barrier.cta.red.or.pred q, %2, 128, p; selp.u32 %0, 1, 0, q; }"
               : "=r"(any)
               : "r"(static_cast<uint32_t>(predicate)), "r"(id)
               : "memory");
  return any != 0;
#else
  return predicate;
#endif
}
__device__ inline void sync_warpgroup([[maybe_unused]] int id) {
#if MULTIKV_WARPGROUP_PASS
  asm volatile("barrier.cta.sync %0, 128;" ::"r"(id) : "memory");
#endif
}

// Makes this thread's writes to shared memory visible to matrix instructions. Afterwards, the threads that start these
// instructions must be synchronised with this thread.
__device__ inline void publish_to_matrix_instructions() {
#if MULTIKV_WARPGROUP_PASS
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Returns x. The compiler does not know that: it keeps x in a register instead of computing it again, and cannot
// compute before a loop what depends on x.
__device__ inline int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
__device__ inline const char* opaque(const char* x) {
  asm volatile("" : "+l"(x));
  return x;
}

// Starts an asynchronous copy of 8 bytes to shared memory. Writes zeros, and reads nothing, unless is_valid.
__device__ inline void copy_async_8(uint32_t to, const void* from, bool is_valid) {
  asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(is_valid ? 8 : 0)
               : "memory");
}

// Describes a tile of 16-bit elements in shared memory to matrix instructions. The tile has rows of 64 elements, that
// is 128 bytes, and 8 rows form an aligned block of 1024 bytes, in which chunk i of 16 bytes of row r is stored at
// chunk i ^ r. Blocks are block_bytes apart. columns_bytes is the distance from 64 columns to the next 64; only
// transposed operands use it. All numbers are multiples of 16, and the same in all lanes.
struct TileDescriptor {
  uint32_t low, high;

  __device__ static TileDescriptor of(uint32_t address, uint32_t block_bytes, uint32_t columns_bytes) {
    return {columns_bytes / 16 << 16 | address / 16, 1u << 30 | block_bytes / 16};
  }
  // Describes what lies `bytes` further on.
  __device__ TileDescriptor operator+(uint32_t bytes) const { return {low + bytes / 16, high}; }
};

// Matrix instructions are asynchronous. begin_products() comes before the first one that takes registers which other
// instructions have written. commit_products() closes a group. wait_for_products() waits until at most kGroups groups
// run; only then other instructions may touch the registers.
__device__ inline void begin_products() {
#if MULTIKV_WARPGROUP_PASS
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ inline void commit_products() {
#if MULTIKV_WARPGROUP_PASS
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
template <int kGroups>
__device__ inline void wait_for_products() {
#if MULTIKV_WARPGROUP_PASS
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
#endif
}
// Keeps the compiler from moving accesses to the results of products across this point.
template <int kCount>
__device__ inline void pin(float (&c)[kCount][4]) {
#pragma unroll
  for (int i = 0; i < kCount * 4; ++i) asm volatile("" : "+f"(c[i / 4][i % 4])::"memory");
}

#define MULTIKV_FLOATS_4(c, i) "+f"((c)[i][0]), "+f"((c)[i][1]), "+f"((c)[i][2]), "+f"((c)[i][3])
#define MULTIKV_FLOATS_16(c, i) \
  MULTIKV_FLOATS_4(c, i), MULTIKV_FLOATS_4(c, i + 1), MULTIKV_FLOATS_4(c, i + 2), MULTIKV_FLOATS_4(c, i + 3)
#define MULTIKV_NUMBERS_32                                                                                         \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, "                                                                                                          \
  "%25, %26, %27, %28, %29, %30, %31"
#define MULTIKV_NUMBERS_64                                                                                           \
  MULTIKV_NUMBERS_32                                                                                                 \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, " \
  "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// Starts c = a * b^T, or c += a * b^T if `adds`, for 64 rows of 16 elements of a and b each. c[n] are the warp's 16
// rows and the columns 8 * n .. 8 * n + 7 of the result, as multiply_add in matrix.cuh has them.
template <Float kDtype>
__device__ inline void start_scores([[maybe_unused]] float (&c)[8][4], [[maybe_unused]] TileDescriptor a,
                                    [[maybe_unused]] TileDescriptor b, [[maybe_unused]] bool adds) {
#if MULTIKV_WARPGROUP_PASS
#define MULTIKV_START_SCORES(type)                                                                                    \
  asm volatile(                                                                                                       \
      "{ .reg .pred p; .reg .b64 a, b; setp.ne.u32 p, %36, 0; mov.b64 a, {%32, %33}; mov.b64 b, {%34, %35}; "         \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" MULTIKV_NUMBERS_32 "}, a, b, p, 1, 1, 0, 0; }" \
      : MULTIKV_FLOATS_16(c, 0), MULTIKV_FLOATS_16(c, 4)                                                              \
      : "r"(a.low), "r"(a.high), "r"(b.low), "r"(b.high), "r"(static_cast<uint32_t>(adds)))
  if constexpr (kDtype == Float::kBFloat16) MULTIKV_START_SCORES("bf16");
  else MULTIKV_START_SCORES("f16");
#undef MULTIKV_START_SCORES
#endif
}

// Starts c = a * b, or c += a * b if `adds`, for the warp's 16 rows of a, which are the operand `a` of multiply_add,
// and 16 rows of b.
template <Float kDtype>
__device__ inline void start_outputs([[maybe_unused]] float (&c)[8][4], [[maybe_unused]] const uint32_t (&a)[4],
                                     [[maybe_unused]] TileDescriptor b, [[maybe_unused]] bool adds) {
#if MULTIKV_WARPGROUP_PASS
#define MULTIKV_START_OUTPUTS(type)                                                       \
  asm volatile(                                                                           \
      "{ .reg .pred p; .reg .b64 b; setp.ne.u32 p, %38, 0; mov.b64 b, {%36, %37}; "       \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" MULTIKV_NUMBERS_32 \
      "}, {%32, %33, %34, %35}, b, p, 1, 1, 1; }"                                         \
      : MULTIKV_FLOATS_16(c, 0), MULTIKV_FLOATS_16(c, 4)                                  \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.low), "r"(b.high), "r"(static_cast<uint32_t>(adds)))
  if constexpr (kDtype == Float::kBFloat16) MULTIKV_START_OUTPUTS("bf16");
  else MULTIKV_START_OUTPUTS("f16");
#undef MULTIKV_START_OUTPUTS
#endif
}
template <Float kDtype>
__device__ inline void start_outputs([[maybe_unused]] float (&c)[16][4], [[maybe_unused]] const uint32_t (&a)[4],
                                     [[maybe_unused]] TileDescriptor b, [[maybe_unused]] bool adds) {
#if MULTIKV_WARPGROUP_PASS
#define MULTIKV_START_OUTPUTS(type)                                                                         \
  asm volatile(                                                                                             \
      "{ .reg .pred p; .reg .b64 b; setp.ne.u32 p, %70, 0; mov.b64 b, {%68, %69}; "                         \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" MULTIKV_NUMBERS_64                  \
      "}, {%64, %65, %66, %67}, b, p, 1, 1, 1; }"                                                           \
      : MULTIKV_FLOATS_16(c, 0), MULTIKV_FLOATS_16(c, 4), MULTIKV_FLOATS_16(c, 8), MULTIKV_FLOATS_16(c, 12) \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.low), "r"(b.high), "r"(static_cast<uint32_t>(adds)))
  if constexpr (kDtype == Float::kBFloat16) MULTIKV_START_OUTPUTS("bf16");
  else MULTIKV_START_OUTPUTS("f16");
#undef MULTIKV_START_OUTPUTS
#endif
}

#undef MULTIKV_NUMBERS_64
#undef MULTIKV_NUMBERS_32
#undef MULTIKV_FLOATS_16
#undef MULTIKV_FLOATS_4

}  // namespace multikv::gpu
