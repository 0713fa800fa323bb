// Declares the ops, once per process: this file is in the library that is always loaded.
#include "ops.h"

STABLE_TORCH_LIBRARY(multikv, m) { multikv::define_ops(m); }
