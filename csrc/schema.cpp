// Declares the ops. The library that is always loaded holds this file, so that they are declared once per process.
#include "ops.h"

STABLE_TORCH_LIBRARY(multikv, m) { multikv::define_ops(m); }
