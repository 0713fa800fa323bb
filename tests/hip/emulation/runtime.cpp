// Stands in for AMD's runtime, libamdhip64.so, on a host without an AMD GPU. "Device memory" is memory of the host, and
// copies are done when they are submitted. Queries of memory are answered as AMD's runtime (CLR) answers them, where
// that differs from CUDA.
//
// The stand-in serves the emulation of kernels, and the HIP library itself, whose kernels it counts but does not run.
#include <hip/hip_runtime_api.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

enum class Kind : int { kDevice, kPinned, kRegistered };

struct Memory {
  char* host;  // the address of the host, and for kDevice the address of the GPU
  char* gpu;
  size_t size;
  Kind kind;
};
std::map<const char*, Memory> memories;  // by both addresses

struct Found {
  const Memory* memory = nullptr;
  size_t offset = 0;
};
Found find(const void* address) {
  const auto* at = static_cast<const char*>(address);
  auto next = memories.upper_bound(at);
  if (next == memories.begin()) return {};
  const auto& [begin, memory] = *--next;
  const size_t offset = at - begin;
  return offset < memory.size ? Found{&memory, offset} : Found{};
}

bool is_initialised = false, is_used = false;
int num_launches = 0, num_copies = 0;
unsigned host_flags = 0;

hipError_t initialised(hipError_t result = hipSuccess) {
  is_initialised = true;
  return result;
}

}  // namespace

// What tests call.

// Maps `size` bytes at two addresses, one of the host and one of the GPU, as hipHostRegister() does.
EXPORT void* stand_in_register(size_t size, void** gpu) {
  const int file = memfd_create("registered", 0);
  if (file < 0 || ftruncate64(file, static_cast<off64_t>(size)) != 0) return nullptr;
  const auto map = [&] {
    return static_cast<char*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0));
  };
  const Memory memory{map(), map(), size, Kind::kRegistered};
  memories[memory.host] = memories[memory.gpu] = memory;
  *gpu = memory.gpu;
  is_used = initialised() == hipSuccess;
  return memory.host;
}
EXPORT void* stand_in_malloc(size_t size) {
  auto* const host = static_cast<char*>(
      mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  memories[host] = {host, host, size, Kind::kDevice};
  is_used = initialised() == hipSuccess;
  return host;
}
EXPORT int stand_in_launches() { return num_launches; }
EXPORT int stand_in_copies() { return num_copies; }
EXPORT unsigned stand_in_host_flags() { return host_flags; }
EXPORT int stand_in_is_initialised() { return is_initialised; }

// Torch's function in libtorch_hip.so.
EXPORT int aoti_torch_get_current_cuda_stream(int, void** stream) { return *stream = nullptr, 0; }

// HSA fails with this error until HIP has initialised it.
EXPORT int hsa_system_get_info(int, void*) { return is_initialised ? 0 : 0x100b; }

EXPORT hipError_t hipGetDeviceCount(int* count) { return *count = 1, initialised(); }
EXPORT hipError_t hipGetDevice(int* device) { return *device = 0, initialised(); }
EXPORT hipError_t hipSetDevice(int device) { return initialised(device == 0 ? hipSuccess : hipErrorInvalidDevice); }
EXPORT hipError_t hipDevicePrimaryCtxGetState(hipDevice_t, unsigned* flags, int* is_active) {
  return *flags = 0, *is_active = is_used, initialised();
}
EXPORT hipError_t hipDeviceGetAttribute(int* value, hipDeviceAttribute_t attribute, int) {
  switch (attribute) {
    case hipDeviceAttributeMultiprocessorCount: *value = 4; break;
    case hipDeviceAttributeMaxSharedMemoryPerBlock: *value = 64 << 10; break;
    default: *value = 0; return initialised(hipErrorInvalidValue);
  }
  return initialised();
}
EXPORT hipError_t hipGetDeviceProperties(hipDeviceProp_t* properties, int) {
  std::memset(properties, 0, sizeof(*properties));
  std::strcpy(properties->gcnArchName, "gfx90a:sramecc+:xnack-");
  return initialised();
}
EXPORT hipError_t hipFuncSetAttribute(const void*, hipFuncAttribute, int) { return initialised(); }
EXPORT hipError_t hipGetLastError() { return hipSuccess; }
EXPORT const char* hipGetErrorString(hipError_t error) { return error == hipSuccess ? "no error" : "an error"; }

EXPORT hipError_t hipPointerGetAttributes(hipPointerAttribute_t* attributes, const void* address) {
  const auto [memory, offset] = find(address);
  *attributes = {};
  if (memory == nullptr) return initialised(hipErrorInvalidValue);  // success since ROCm 6
  attributes->devicePointer = memory->gpu + offset;
  if (memory->kind != Kind::kDevice) attributes->hostPointer = memory->host + offset;
  return initialised();
}
EXPORT hipError_t hipMemGetAddressRange(hipDeviceptr_t* base, size_t* size, hipDeviceptr_t address) {
  const Memory* memory = find(address).memory;
  if (memory == nullptr) return initialised(hipErrorNotFound);
  *base = memory->kind == Kind::kRegistered ? nullptr : memory->gpu;  // CLR: getSvmPtr(), which registered memory lacks
  *size = memory->size;
  return initialised();
}
EXPORT hipError_t hipPointerGetAttribute(void* data, hipPointer_attribute attribute, hipDeviceptr_t address) {
  const Memory* memory = find(address).memory;
  if (memory == nullptr) return initialised(hipErrorInvalidValue);
  if (attribute == HIP_POINTER_ATTRIBUTE_RANGE_START_ADDR) {
    std::memcpy(data, &memory->host, sizeof(char*));
  } else if (attribute == HIP_POINTER_ATTRIBUTE_RANGE_SIZE) {
    const auto size = static_cast<uint32_t>(memory->size);  // CLR writes 32 bits
    std::memcpy(data, &size, sizeof(size));
  } else {
    return initialised(hipErrorNotSupported);
  }
  return initialised();
}
EXPORT hipError_t hipHostGetDevicePointer(void** gpu, void* address, unsigned) {
  const auto [memory, offset] = find(address);
  if (memory == nullptr) return initialised(hipErrorInvalidValue);
  return *gpu = memory->gpu + offset, initialised();
}
EXPORT hipError_t hipHostMalloc(void** address, size_t size, unsigned flags) {
  host_flags = flags;
  *address = stand_in_malloc(size);
  memories[static_cast<char*>(*address)].kind = Kind::kPinned;
  return initialised();
}
EXPORT hipError_t hipHostFree(void* address) {
  const auto found = memories.find(static_cast<char*>(address));
  if (found == memories.end()) return initialised(hipErrorInvalidValue);
  munmap(found->second.host, found->second.size);
  memories.erase(found);
  return initialised();
}

EXPORT hipError_t hipMemcpyAsync(void* to, const void* from, size_t size, hipMemcpyKind, hipStream_t) {
  ++num_copies;
  std::memmove(to, from, size);
  return initialised();
}
EXPORT hipError_t hipStreamSynchronize(hipStream_t) { return initialised(); }
EXPORT hipError_t hipStreamIsCapturing(hipStream_t, hipStreamCaptureStatus* status) {
  return *status = hipStreamCaptureStatusNone, initialised();
}
EXPORT hipError_t hipEventCreateWithFlags(hipEvent_t* event, unsigned) { return *event = nullptr, initialised(); }
EXPORT hipError_t hipEventRecord(hipEvent_t, hipStream_t) { return initialised(); }
EXPORT hipError_t hipStreamWaitEvent(hipStream_t, hipEvent_t, unsigned) { return initialised(); }

// What clang's launches call.
EXPORT void** __hipRegisterFatBinary(const void*) {
  static void* module;
  return &module;
}
EXPORT void __hipUnregisterFatBinary(void**) {}
EXPORT void __hipRegisterFunction(void**, const void*, char*, const char*, unsigned, void*, void*, dim3*, dim3*, int*) {
}
EXPORT hipError_t __hipPushCallConfiguration(dim3, dim3, size_t, hipStream_t) { return hipSuccess; }
EXPORT hipError_t __hipPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, hipStream_t* stream) {
  return *grid = *block = dim3(1), *shared = 0, *stream = nullptr, hipSuccess;
}
EXPORT hipError_t hipLaunchKernel(const void*, dim3, dim3, void**, size_t, hipStream_t) {
  return ++num_launches, initialised();
}
