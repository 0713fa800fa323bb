#include "cpu/launch.h"

namespace multikv::cpu {

void launch(const PagedAttentionParams&) {}

}  // namespace multikv::cpu
