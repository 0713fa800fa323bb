// Finds out whether two tokens of an op have the same slot. Such tokens must be written in order.
#pragma once

#include <concepts>
#include <type_traits>

#include "core/slots.h"

namespace multikv::cpu {

// Returns true if two tokens have the same slot. Negative slots are padding and are ignored.
bool has_duplicate_slots(const Slots& slots, const Blocks& blocks);

// Params of an op that writes each token to its slot.
//   p.slots      the slot of each token
//   p.blocks()   the blocks of the cache
template <class Params>
concept WritesSlots = requires(const Params& p) {
  { p.slots } -> std::same_as<const Slots&>;
  { p.blocks() } -> std::same_as<const Blocks&>;
};

// Params of an op whose last step is the write of another op.
//   p.write      the params of that write
template <class Params>
concept WritesSlotsAfterwards = WritesSlots<std::remove_cvref_t<decltype(std::declval<Params>().write)>>;

// Params of an op that writes to the caches of several layers.
//   p.num_layers   the number of layers
//   p.layer(i)     the params of the write to the cache of layer i
//   p.first.slots  the slots of all layers: slots.mapping is [layers, tokens]; a stride of 0 means that all layers have
//                  the same slots
template <class Params>
concept WritesSlotsOfLayers = requires(const Params& p) {
  { p.layer(p.num_layers) } -> WritesSlots;
  { p.first.slots } -> std::same_as<const Slots&>;
};

template <class Params>
concept WritesTokens = WritesSlots<Params> || WritesSlotsAfterwards<Params> || WritesSlotsOfLayers<Params>;

template <WritesTokens Params>
bool has_duplicate_slots(const Params& p) {
  if constexpr (WritesSlots<Params>) {
    return has_duplicate_slots(p.slots, p.blocks());
  } else if constexpr (WritesSlotsAfterwards<Params>) {
    return has_duplicate_slots(p.write);
  } else {
    const bool is_one_mapping = p.first.slots.mapping.stride == 0;
    const int64_t num_mappings = is_one_mapping ? 1 : p.num_layers;
    for (int64_t i = 0; i < num_mappings; ++i) {
      if (has_duplicate_slots(p.layer(i))) return true;
    }
    return false;
  }
}

}  // namespace multikv::cpu
