// Launches of kernels on lists of planes. The addresses of the planes, and lists of blocks or slots that are in the
// memory of the host, are passed by value, in the parameters of the launch: nothing is uploaded or allocated, and a
// CUDA graph can capture the launch.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstring>

#include "core/planes.h"
#include "vendor/driver.h"
#include "vendor/gpu.cuh"

namespace multikv::gpu {

// What a kernel on planes needs to know besides the planes.
//  - Head is trivial, so that the thread-local parameters of each host thread need no constructor.
//  - Head::Item is what the kernel gets for each plane: Plane, or another small struct.
//  - Head::Entry is what the kernel gets for each entry of a list in the memory of the host, such as a pair of blocks.
template <class Head>
concept PlanesHead = std::is_trivial_v<Head> && std::is_trivially_copyable_v<typename Head::Item> &&
                     std::is_trivially_copyable_v<typename Head::Entry>;

// The parameters of a launch, of at most kBytes bytes.
//
//   | head | counts | Item[num_items] | Entry[num_entries], if the lists are in the memory of the host | unused |
template <PlanesHead Head, int kBytes>
struct PlanesLaunch {
  using Item = typename Head::Item;
  using Entry = typename Head::Entry;
  static constexpr int kPayload = (kBytes - 16 - static_cast<int>(sizeof(Head) + 15) / 16 * 16) / 16 * 16;
  static_assert(kPayload >= 1024 && sizeof(Item) % alignof(Entry) == 0);

  Head head;
  int32_t num_items;    // planes of this launch
  int32_t num_entries;  // entries of the lists that this launch processes
  int64_t first_entry;  // the number of the first of them
  alignas(16) unsigned char payload[kPayload];

  __host__ __device__ const Item* items() const { return reinterpret_cast<const Item*>(payload); }
  __host__ __device__ const Entry* entries() const { return reinterpret_cast<const Entry*>(items() + num_items); }
};

constexpr int kSmallLaunchBytes = 4'000, kLargeLaunchBytes = kMaxParameterBytes;

// The planes of one group, and the lists.
template <PlanesHead Head>
struct PlanesWork {
  const typename Head::Item* items;
  int64_t num_items;
  int64_t num_entries;
};

// The bytes that the planes take in a launch, with the entries of lists in the memory of the host.
template <PlanesHead Head, bool kOnHost>
int64_t payload_bytes(const PlanesWork<Head>& work) {
  const int64_t entry_bytes = kOnHost ? work.num_entries * static_cast<int64_t>(sizeof(typename Head::Entry)) : 0;
  return work.num_items * static_cast<int64_t>(sizeof(typename Head::Item)) + entry_bytes;
}

// Fills the calling thread's parameters of kBytes bytes, and calls launch(parameters) for each launch. `entry_of(i)`
// returns entry i of lists in the memory of the host; with nullptr the lists are in the memory of the device. Lists in
// the memory of the device leave the whole payload to the planes. If planes and entries together fit into the payload,
// there is one launch. Otherwise the planes of a launch take at most half of it, and entries in the memory of the host
// get the rest.
template <int kBytes, PlanesHead Head, class EntryOf, class Launch>
void launch_planes_as(const Head& head, const PlanesWork<Head>& work, const EntryOf& entry_of, const Launch& launch) {
  using Parameters = PlanesLaunch<Head, kBytes>;
  using Item = typename Head::Item;
  using Entry = typename Head::Entry;
  constexpr bool kOnHost = !std::same_as<EntryOf, std::nullptr_t>;
  constexpr int64_t kMostEntries = int64_t{1} << 30;
  const bool is_halved = kOnHost && payload_bytes<Head, kOnHost>(work) > Parameters::kPayload;
  const int64_t most_items = Parameters::kPayload / (is_halved ? 2 : 1) / static_cast<int64_t>(sizeof(Item));
  static thread_local Parameters kept;
  Parameters& parameters = kept;  // a reference, because every access to a thread_local variable is a function call
  parameters.head = head;
  for (int64_t item = 0; item < work.num_items; item += most_items) {
    const int64_t num_items = std::min(most_items, work.num_items - item);
    const int64_t item_bytes = num_items * static_cast<int64_t>(sizeof(Item));
    parameters.num_items = static_cast<int32_t>(num_items);
    std::memcpy(parameters.payload, work.items + item, item_bytes);
    const int64_t room = (Parameters::kPayload - item_bytes) / static_cast<int64_t>(sizeof(Entry));
    const int64_t most_entries = kOnHost ? room : kMostEntries;
    for (int64_t first = 0; first < work.num_entries; first += most_entries) {
      const int64_t num_entries = std::min(most_entries, work.num_entries - first);
      parameters.num_entries = static_cast<int32_t>(num_entries);
      parameters.first_entry = first;
      if constexpr (kOnHost) {
        for (int64_t i = 0; i < num_entries; ++i) {
          const Entry entry = entry_of(first + i);
          std::memcpy(parameters.payload + item_bytes + i * sizeof(Entry), &entry, sizeof(Entry));
        }
      }
      launch(parameters);
    }
  }
}

// Calls launch(parameters), where the parameters are a PlanesLaunch of kSmallLaunchBytes if planes and entries together
// fit into its payload, or else of the largest size that the driver takes. 200 planes of 16 bytes fit into the small
// payload.
template <PlanesHead Head, class EntryOf, class Launch>
void launch_planes(const Head& head, const PlanesWork<Head>& work, const EntryOf& entry_of, const Launch& launch) {
  if constexpr (kLargeLaunchBytes > kSmallLaunchBytes) {
    const int64_t bytes = payload_bytes<Head, !std::same_as<EntryOf, std::nullptr_t>>(work);
    if (bytes > PlanesLaunch<Head, kSmallLaunchBytes>::kPayload && has_large_parameters()) {
      return launch_planes_as<kLargeLaunchBytes>(head, work, entry_of, launch);
    }
  }
  launch_planes_as<kSmallLaunchBytes>(head, work, entry_of, launch);
}

}  // namespace multikv::gpu
