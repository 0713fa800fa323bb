// Arguments that are floating-point numbers.
#pragma once

#include <string>

namespace multikv {

// Converts to float32, rounded to nearest even, whatever torch.set_flush_denormal has set for the caller's thread.
float rounded_to_float(double number);
std::string number_text(double number);  // "-1", "0.5"

}  // namespace multikv
