// Declares the schemas of the ops. Only the CPU library, which is always loaded, contains this file, so that each
// schema is declared once per process.
#include "ops.h"

STABLE_TORCH_LIBRARY(multikv, m) {
  multikv::for_each_op([&] < const auto& schema,
                       auto make_params > (multikv::Op<schema, make_params>) { m.def(schema); });
}
