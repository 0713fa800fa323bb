// What every params struct is.
#pragma once

#include <type_traits>

namespace multikv {

// Launch parameters of a GPU kernel: plain bytes, at most 4 KB of them.
template <class Params>
concept LaunchParams = std::is_trivially_copyable_v<Params> && sizeof(Params) <= 4096;

}  // namespace multikv
