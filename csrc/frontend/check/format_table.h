// The table of cache formats as JSON, for Python.
#pragma once

#include <string>

namespace multikv {

// Returns kCacheFormats of core/format.h as a JSON array with an object for each row. An enumerator such as kPowerOfTwo
// is written as "power_of_two".
std::string formats_json();

}  // namespace multikv
