// The C functions that Python, or another multikv library, calls. multikv/runtime/c_api.py has their Python prototypes.
//
// The CPU library passes structs of csrc/params to a GPU library. So libraries work together only if their ABI versions
// and build ids are equal. The manifest beside each library, multikv_<name>.json, repeats the version and the build id,
// so that a library of another build is rejected before it is loaded.
#pragma once

#include <stdint.h>

// Increase this number when a function in this file changes.
#define MULTIKV_ABI_VERSION 4

#define MULTIKV_EXPORT extern "C" __attribute__((visibility("default")))

// -- in every library -------------------------------------------------------------------------------------------------

MULTIKV_EXPORT int32_t multikv_abi_version();

// A digest of the sources that the library was built from.
MULTIKV_EXPORT const char* multikv_build_id();

// The names of the ops of vLLM's namespace _C_cache_ops that the library has a kernel for, separated by commas.
MULTIKV_EXPORT const char* multikv_vllm_ops();

// Registers the library's kernel for an op of vLLM's namespace _C_cache_ops. The CPU library registers it under
// dispatch key CPU, a GPU library under CUDA. A kernel that is registered there is replaced until
// multikv_stop_serving_vllm(). No other thread may register, remove or call kernels of the op at the same time.
//
//   name    the op, one of multikv_vllm_ops()
//   schema  the schema of the op in this process, as PyTorch prints it. nullptr means that the op has no
//           schema yet; the function then also defines the op, for the rest of the process.
//
// Returns nullptr, or the text of the reason why the op is not served, which is valid until the thread's next call.
MULTIKV_EXPORT const char* multikv_serve_vllm(const char* name, const char* schema);

// Removes all kernels that multikv_serve_vllm has registered. The kernels that they replaced are back, and an op that
// was defined stays defined without a kernel. No other thread may register, remove or call kernels of these ops at the
// same time.
MULTIKV_EXPORT void multikv_stop_serving_vllm();

// -- in the CPU library -----------------------------------------------------------------------------------------------

// The name of the instruction set that the CPU kernels use, for example "avx512".
MULTIKV_EXPORT const char* multikv_cpu_isa();

// The names of the instruction sets that this CPU supports, separated by commas: "baseline,avx2,avx512".
MULTIKV_EXPORT const char* multikv_cpu_isas();

// Makes the CPU kernels use an instruction set. Returns 1, or 0 if the name is unknown or this CPU does not support it.
MULTIKV_EXPORT int32_t multikv_set_cpu_isa(const char* name);

// The table of cache formats (core/format.h), as a JSON array with an object for each row.
MULTIKV_EXPORT const char* multikv_formats();

// Sets the function that swap_blocks_batch calls for addresses that may be a GPU's: multikv_gpu_swap_batch of the GPU
// library that is loaded, or nullptr if none is.
MULTIKV_EXPORT void multikv_set_gpu_swap_batch(void* function);

// -- in a GPU library -------------------------------------------------------------------------------------------------

// Turns the checks of index values on or off. An op that checks them copies the indices to the host and synchronises.
MULTIKV_EXPORT void multikv_set_check_indices(int32_t enabled);

// Runs swap_blocks_batch. `params` points to a SwapBlocksBatchParams whose addresses may be those of a GPU or of the
// host. If this process has no context on the current GPU, or there is no GPU, all addresses are taken to be the
// host's: the function then copies nothing and sets *is_done to 0; otherwise it sets *is_done to 1. Returns nullptr, or
// the text of an error, which is valid until the thread's next call.
MULTIKV_EXPORT const char* multikv_gpu_swap_batch(const void* params, int32_t* is_done);

// Allocates pinned host memory that every GPU can read and write. Returns nullptr, or the text of an error.
MULTIKV_EXPORT const char* multikv_allocate_host(void** address, int64_t num_bytes);

// Frees memory of multikv_allocate_host.
MULTIKV_EXPORT void multikv_free_host(void* address);

// Sets what copies the blocks of swaps. 0: the crossovers below decide. 1: the copy engines. 2: a kernel. Returns
// nullptr, or the text of an error: there is no such strategy.
MULTIKV_EXPORT const char* multikv_set_swap_strategy(int32_t strategy);

// Sets the size of the smallest run of neighbouring blocks that strategy 0 gives to a copy engine and not to the
// kernel. Returns nullptr, or the text of an error: the device is negative, or there is no such direction.
//
//   device          the GPU
//   direction       0: to the host; 1: from the host; 2: within the device
//   in_batches      smallest run for a copy engine, in bytes, where the driver takes many copies in one call
//   one_by_one      the same where the driver takes one copy per call
//   kernel_threads  threads of the kernel. 0: as many as there is work for; negative: leaves the setting as it is
MULTIKV_EXPORT const char* multikv_set_swap_crossover(int32_t device, int32_t direction, int64_t in_batches,
                                                      int64_t one_by_one, int32_t kernel_threads);

// Writes the values that multikv_set_swap_crossover has set, or the defaults, to the last three arguments. Returns
// nullptr, or the text of an error: the device is negative, or there is no such direction.
MULTIKV_EXPORT const char* multikv_get_swap_crossover(int32_t device, int32_t direction, int64_t* in_batches,
                                                      int64_t* one_by_one, int32_t* kernel_threads);
