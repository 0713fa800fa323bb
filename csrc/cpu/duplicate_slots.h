// Whether an op would write one slot of a cache twice.
#pragma once

#include <concepts>
#include <type_traits>

#include "core/slots.h"

namespace multikv::cpu {

// True where two tokens go to one slot.
bool has_duplicate_slots(const Slots& slots, const Blocks& blocks);

// Params of an op that writes each token to the slot that `slots` names, of a cache with `blocks()`.
template <class Params>
concept WritesSlots = requires(const Params& p) {
  { p.slots } -> std::same_as<const Slots&>;
  { p.blocks() } -> std::same_as<const Blocks&>;
};

// Params of an op that does something else first, and then writes slots as `write` says.
template <class Params>
concept WritesSlotsAfterwards = WritesSlots<std::remove_cvref_t<decltype(std::declval<Params>().write)>>;

// Params of an op that writes slots of `num_layers` caches, each as layer(i) says. `first` holds the slots of all
// layers.
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
