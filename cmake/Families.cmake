# A family is a group of ops whose sources have one name on every layer:
#
#   csrc/frontend/ops/<name>.cpp  the checks
#   csrc/cpu/isa/<name>.cpp       CPU kernels, compiled once per instruction set
#   csrc/cuda/ops/<name>.cu       GPU kernels, for CUDA and, hipified, for HIP; or csrc/cuda/<name>/*.cu

# multikv_add_family(<name> EXACT|FAST [ARCHS <architecture>...])
#
# Adds a family to the library of every backend that is built, with compiler options of its own:
#   EXACT  The compiler never contracts a multiplication and an addition to one fused operation, which would round once
#          instead of twice. So every backend gives the same bytes.
#   FAST   The compiler may contract them in GPU kernels. CPU kernels are EXACT in every family, so that all instruction
#          sets give the same bits.
#   ARCHS  CUDA architectures, such as 90a, that this family is compiled for in the place of 90, if MULTIKV_CUDA_ARCHS
#          has 90. The sources then see the macro MULTIKV_HAS_SM90A.
function(multikv_add_family name arithmetic)
  cmake_parse_arguments(PARSE_ARGV 2 arg "" "" "ARCHS")
  if(NOT arithmetic MATCHES "^(EXACT|FAST)$" OR arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "expected multikv_add_family(<name> EXACT|FAST [ARCHS <architecture>...]), "
                        "got multikv_add_family(${ARGV})")
  endif()
  if(NOT EXISTS "${CMAKE_SOURCE_DIR}/csrc/frontend/ops/${name}.cpp")
    message(FATAL_ERROR "family ${name} has no csrc/frontend/ops/${name}.cpp")
  endif()
  multikv_add_cpu_family(${name})
  if("cuda" IN_LIST MULTIKV_BUILD)
    multikv_add_cuda_family(${name} ${arithmetic} "${arg_ARCHS}")
  endif()
  if("hip" IN_LIST MULTIKV_BUILD)
    multikv_add_hip_family(${name} ${arithmetic})
    if(MULTIKV_HAS_EMULATION)
      multikv_add_emulated_family(${name} ${arithmetic})
    endif()
  endif()
endfunction()

# Sets `result` to the option of GCC and Clang for EXACT or FAST arithmetic.
function(multikv_contraction_option result arithmetic)
  if(arithmetic STREQUAL "EXACT")
    set(${result} -ffp-contract=off PARENT_SCOPE)
  else()
    set(${result} -ffp-contract=fast PARENT_SCOPE)
  endif()
endfunction()

# Sets `result` to the GPU sources of a family, relative to csrc.
function(multikv_gpu_sources result name)
  set(sources "cuda/ops/${name}.cu")
  if(NOT EXISTS "${CMAKE_SOURCE_DIR}/csrc/${sources}")
    file(GLOB sources RELATIVE "${CMAKE_SOURCE_DIR}/csrc" CONFIGURE_DEPENDS "csrc/cuda/${name}/*.cu")
    if(NOT sources)
      message(FATAL_ERROR "family ${name} has neither csrc/cuda/ops/${name}.cu nor csrc/cuda/${name}/*.cu")
    endif()
  endif()
  set(${result} "${sources}" PARENT_SCOPE)
endfunction()
