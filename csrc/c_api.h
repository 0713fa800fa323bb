// Every C function that Python, or another library of multikv, calls. multikv/runtime/c_api.py holds the prototypes for
// Python.
//
// Libraries work together only if their versions and build ids are equal: structs of csrc/params cross the border. The
// manifest beside each library, multikv_<name>.json, repeats both, so that a library of another build is refused
// before it is loaded.
#pragma once

#include <stdint.h>

// To be raised when a function here changes.
#define MULTIKV_ABI_VERSION 1

#define MULTIKV_EXPORT extern "C" __attribute__((visibility("default")))

// -- in every library -------------------------------------------------------------------------------------------------

MULTIKV_EXPORT int32_t multikv_abi_version();

// A digest of the sources that the library was built from.
MULTIKV_EXPORT const char* multikv_build_id();

// -- in the CPU library -----------------------------------------------------------------------------------------------

// The instruction set that the CPU kernels use.
MULTIKV_EXPORT const char* multikv_cpu_isa();

// The instruction sets that this CPU can run, separated by commas, the plainest first.
MULTIKV_EXPORT const char* multikv_cpu_isas();

// Returns 0 if there is no such instruction set, or this CPU lacks it.
MULTIKV_EXPORT int32_t multikv_set_cpu_isa(const char* name);

// The table of cache formats (core/format.h), as a JSON array with an object for each row.
MULTIKV_EXPORT const char* multikv_formats();

// `function` is multikv_gpu_swap_batch of the GPU library that is loaded, or nullptr.
MULTIKV_EXPORT void multikv_set_gpu_swap_batch(void* function);

// -- in a GPU library -------------------------------------------------------------------------------------------------

// Whether ops check their indices, which costs a synchronisation.
MULTIKV_EXPORT void multikv_set_check_indices(int32_t enabled);

// Runs swap_blocks_batch on a SwapBlocksBatchParams, some of whose addresses may be a GPU's. Sets is_done to 0 if this
// process has used no GPU: then all addresses are the host's. Returns nullptr, or the text of an error, which is valid
// until the thread's next call.
MULTIKV_EXPORT const char* multikv_gpu_swap_batch(const void* params, int32_t* is_done);

// Allocates pinned host memory that every GPU can read and write. Returns nullptr, or the text of an error.
MULTIKV_EXPORT const char* multikv_allocate_host(void** address, int64_t num_bytes);

MULTIKV_EXPORT void multikv_free_host(void* address);

// What copies the blocks of swaps: 0 auto, 1 the copy engines, 2 a kernel.
MULTIKV_EXPORT void multikv_set_swap_strategy(int32_t strategy);

// From how many bytes on `auto` gives a run of blocks to a copy engine, where the driver takes many copies at a time
// and where it takes them one by one; and how many threads the kernel has (0: as many as there is work for; negative:
// as before). direction: 0 to the host, 1 from the host, 2 within the device.
MULTIKV_EXPORT void multikv_set_swap_crossover(int32_t device, int32_t direction, int64_t in_batches,
                                               int64_t one_by_one, int32_t kernel_threads);

MULTIKV_EXPORT void multikv_get_swap_crossover(int32_t device, int32_t direction, int64_t* in_batches,
                                               int64_t* one_by_one, int32_t* kernel_threads);
