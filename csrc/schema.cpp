// Declares the schemas of the ops. Only the CPU library, which is always loaded, contains this file, so that each
// schema is declared once per process.
#include "ops.h"

STABLE_TORCH_LIBRARY(multikv, m) { multikv::define_ops(m); }
