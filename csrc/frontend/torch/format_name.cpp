#include "frontend/torch/format_name.h"

#include <iterator>

namespace multikv {

namespace {

constexpr bool has_one_meaning_per_family() {
  for (const CacheFormat& a : kCacheFormats) {
    for (const CacheFormat& b : kCacheFormats) {
      if (&a != &b && a.name == b.name && (a.families & b.families) != 0) return false;
    }
  }
  return true;
}
static_assert(has_one_meaning_per_family());

}  // namespace

FormatName FormatName::parse(std::string_view text) {
  FormatName name;
  for (const CacheFormat& row : kCacheFormats) {
    if (row.name != text) continue;
    name.first_ = &row;
    return name;
  }
  name.unknown_ = text;
  return name;
}

const CacheFormat* FormatName::find(FormatFamily family) const {
  if (first_ == nullptr) return nullptr;
  for (const CacheFormat* row = first_; row != std::end(kCacheFormats); ++row) {
    if (row->is_for(family) && row->name == first_->name) return row;
  }
  return nullptr;
}

std::string format_names(FormatFamily family) {
  std::string names;
  for (const CacheFormat& row : kCacheFormats) {
    if (row.is_for(family)) (names += names.empty() ? "" : ", ") += row.name;
  }
  return names;
}

}  // namespace multikv
