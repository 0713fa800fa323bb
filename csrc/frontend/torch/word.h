// A `str` that is one of a few words. The op that takes it knows which words it accepts.
#pragma once

#include <string>
#include <string_view>

namespace multikv {

struct Word {
  std::string text;

  static Word parse(std::string_view text) { return {std::string(text)}; }
};

}  // namespace multikv
