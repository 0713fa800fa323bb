// The type of the argument kv_cache_dtype.
#pragma once

#include <string>
#include <string_view>

#include "core/format.h"

namespace multikv {

// A `str` that names a cache format.
class FormatName {
 public:
  static FormatName parse(std::string_view text);

  // Returns the row of kCacheFormats that the name means to a family of ops, or nullptr if the family does not accept
  // the name.
  const CacheFormat* find(FormatFamily family) const;
  std::string_view text() const { return first_ == nullptr ? unknown_ : first_->name; }

 private:
  const CacheFormat* first_ = nullptr;  // the first row with this name
  std::string unknown_;                 // the text of the argument if no row has this name
};

// Returns the names that a family of ops accepts, separated by commas, in the order of kCacheFormats.
std::string format_names(FormatFamily family);

}  // namespace multikv
