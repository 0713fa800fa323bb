// The table of cache formats for Python.
#pragma once

#include <string>

namespace multikv {

// kCacheFormats of core/format.h as a JSON array of objects. Enumerators are written in lower snake case.
std::string formats_json();

}  // namespace multikv
