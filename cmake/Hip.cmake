# The HIP backend: the CUDA sources, hipified into the build tree and compiled by AMD's hipcc or by clang-22. The
# headers of csrc/hip/vendor take the place of those of csrc/cuda/vendor. The backend needs neither an AMD GPU nor a
# ROCm build of torch.

set(MULTIKV_DEFAULT_HIP_ARCHS gfx90a gfx942 gfx950 gfx1100 gfx1201)

# Sources that have no kernels on AMD GPUs. They are compiled for the host alone, and not once more per architecture. A
# kernel in one of them is an error of the linker, an undefined __hip_fatbin.
set(MULTIKV_HIP_HOST_SOURCES
  "attention/(matrix|warpgroup)_.*|attention/paged_attention|moves/overlapping_pairs|norm_rope/norm_rope"
  "swap/addresses|swap/swap_blocks|swap/swap_blocks_batch")
list(JOIN MULTIKV_HIP_HOST_SOURCES "|" MULTIKV_HIP_HOST_SOURCES)

set(MULTIKV_HIP_FLAGS
  -std=c++20 -O3 -DNDEBUG -fPIC -fvisibility=hidden -Wall -Wextra
  -fno-slp-vectorize  # clang-22 would merge accesses to small arrays, and leave these in scratch memory
  -Wno-bitwise-instead-of-logical)  # kernels evaluate both sides on purpose: it saves a branch

# Sets HIPCC (the command and its options), MULTIKV_HIP_LAUNCHER (what stands before a compiler), MULTIKV_HIP_VERSION,
# MULTIKV_HIP_INCLUDE, MULTIKV_HIP_LIBRARY and MULTIKV_HIP_ARCHS_BUILT in the caller.
macro(multikv_find_hip)
  # Without this, Debian's hipcc calls nvcc where there is one.
  execute_process(COMMAND "${CMAKE_COMMAND}" -E env HIP_PLATFORM=amd "${MULTIKV_HIPCC}" --version
    OUTPUT_VARIABLE found ERROR_QUIET)
  if(NOT found MATCHES "HIP version: ([0-9.]+)")
    message(FATAL_ERROR "${MULTIKV_HIPCC} --version does not tell the version of HIP: ${found}")
  endif()
  set(MULTIKV_HIP_VERSION "${CMAKE_MATCH_1}")
  get_filename_component(root "${MULTIKV_HIPCC}" REALPATH)
  get_filename_component(root "${root}/../.." ABSOLUTE)
  find_path(MULTIKV_HIP_INCLUDE hip/hip_runtime_api.h HINTS "${root}/include" "${root}/../include" REQUIRED)
  find_library(MULTIKV_HIP_LIBRARY amdhip64 HINTS "${root}/lib" "${root}/../lib" REQUIRED)
  set(launcher)
  get_filename_component(name "${MULTIKV_CCACHE}" NAME)
  if(name STREQUAL "ccache")
    # hipcc is a script: its modification time says nothing about the compiler that it calls.
    set(launcher "CCACHE_COMPILERCHECK=%compiler% --version" "${MULTIKV_CCACHE}")
  endif()
  set(MULTIKV_HIP_LAUNCHER "${CMAKE_COMMAND}" -E env ${launcher})
  # Debian 12 has HIP 5.2. Its compiler, clang 15, does not know gfx942, gfx950 and gfx1201, and its device libraries
  # lack gfx1100 as well.
  find_program(MULTIKV_HIP_CLANG clang++-22)
  if(MULTIKV_HIP_CLANG AND MULTIKV_HIP_VERSION VERSION_LESS 6)
    multikv_clang_hip_options(options)
    set(HIPCC ${MULTIKV_HIP_LAUNCHER} "${MULTIKV_HIP_CLANG}" ${options})
  else()
    set(HIPCC "${CMAKE_COMMAND}" -E env HIP_PLATFORM=amd ${launcher} "${MULTIKV_HIPCC}")
  endif()
  multikv_hip_architectures(MULTIKV_HIP_ARCHS_BUILT)
endmacro()

# Sets `result` to the options with which clang-22 compiles against the headers and device libraries of HIP 5.
function(multikv_clang_hip_options result)
  get_filename_component(libraries "${MULTIKV_HIP_LIBRARY}" DIRECTORY)
  find_path(MULTIKV_HIP_BITCODE ocml.bc HINTS "${libraries}" PATH_SUFFIXES amdgcn/bitcode REQUIRED)
  get_filename_component(prefix "${MULTIKV_HIP_INCLUDE}" DIRECTORY)
  # Clang warns (pass-failed) where shared memory allows fewer resident thread blocks than __launch_bounds__ asks for.
  # Members that a designated initialiser leaves out are zero on purpose.
  set(${result} -Wno-pass-failed -Wno-missing-designated-field-initializers
    -x hip "--hip-path=${prefix}" "--rocm-device-lib-path=${CMAKE_BINARY_DIR}/hip/bitcode"
    -D__HIP_PLATFORM_AMD__=1 -mcode-object-version=5 PARENT_SCOPE)
endfunction()

# Sets MULTIKV_HIP_FIRST_INCLUDE, the options that include what clang-22 needs before each source, and
# MULTIKV_HIP_PRECOMPILED, files that they need. The header includes HIP's headers, which take a second to parse, for the
# host and for each architecture of each source. So there is a folder of precompiled headers, in which clang finds the
# one of its target. With ccache the header is parsed, because ccache cannot read such a folder.
function(multikv_precompile_hip_headers)
  if(NOT HIPCC MATCHES "--rocm-device-lib-path")
    return()
  endif()
  set(header "${CMAKE_SOURCE_DIR}/csrc/hip/compat/hip5_clang22.h")
  if(MULTIKV_CCACHE)
    set(MULTIKV_HIP_FIRST_INCLUDE -include "${header}" PARENT_SCOPE)
    return()
  endif()
  set(directory "${CMAKE_BINARY_DIR}/hip/precompiled")
  file(MAKE_DIRECTORY "${directory}")
  set(dependencies "${CMAKE_BINARY_DIR}/hip/precompiled.d")
  foreach(target host ${MULTIKV_HIP_ARCHS_BUILT})
    set(options --cuda-device-only "--offload-arch=${target}")
    if(target STREQUAL "host")
      set(options --cuda-host-only -MD -MT "${directory}/host" -MF "${dependencies}")
    endif()
    list(APPEND files "${directory}/${target}")
    list(APPEND commands COMMAND ${HIPCC} ${MULTIKV_HIP_FLAGS} ${options} "${header}" -fsyntax-only
      -Xclang -emit-pch -Xclang -o -Xclang "${directory}/${target}")
  endforeach()
  add_custom_command(OUTPUT ${files} ${commands}
    DEPENDS "${header}"
    DEPFILE "${dependencies}"
    COMMENT "Precompiling HIP's headers"
    VERBATIM)
  set(MULTIKV_HIP_FIRST_INCLUDE -include-pch "${directory}" PARENT_SCOPE)
  set(MULTIKV_HIP_PRECOMPILED ${files} PARENT_SCOPE)
endfunction()

# Sets `result` to the architectures of MULTIKV_HIP_ARCHS; if it is empty, to the default ones that the compiler and its
# device libraries know.
function(multikv_hip_architectures result)
  string(REGEX REPLACE "[ ,]+" ";" archs "${MULTIKV_HIP_ARCHS}")
  set(candidates ${archs})
  if(NOT archs)
    set(candidates ${MULTIKV_DEFAULT_HIP_ARCHS})
  endif()
  foreach(arch IN LISTS candidates)
    if(HIPCC MATCHES "--rocm-device-lib-path")
      multikv_complete_bitcode("${arch}")
    endif()
    execute_process(COMMAND ${HIPCC} -x hip -E -nogpuinc --cuda-device-only "--offload-arch=${arch}" /dev/null
      OUTPUT_QUIET ERROR_VARIABLE error RESULT_VARIABLE failed)
    if(NOT failed)
      list(APPEND known "${arch}")
    elseif(archs)
      message(FATAL_ERROR "MULTIKV_HIP_ARCHS names ${arch}, which the compiler does not know: ${error}")
    endif()
  endforeach()
  message(STATUS "multikv: building HIP ${MULTIKV_HIP_VERSION} for ${known}")
  set(${result} "${known}" PARENT_SCOPE)
endfunction()

# Makes the folder hip/bitcode of the build tree: links to the device libraries, and the library that states the GPU's
# number, which device libraries older than the GPU lack.
function(multikv_complete_bitcode arch)
  set(directory "${CMAKE_BINARY_DIR}/hip/bitcode")
  file(MAKE_DIRECTORY "${directory}")
  file(GLOB libraries "${MULTIKV_HIP_BITCODE}/*.bc")
  foreach(library IN LISTS libraries)
    get_filename_component(name "${library}" NAME)
    file(CREATE_LINK "${library}" "${directory}/${name}" SYMBOLIC)
  endforeach()
  string(REGEX REPLACE "^gfx([^:]+).*" "\\1" name "${arch}")  # gfx90a:xnack- is code for a gfx90a
  set(library "${directory}/oclc_isa_version_${name}.bc")
  if(NOT EXISTS "${library}" AND name MATCHES "^([0-9]+)([0-9])([0-9a-f])$")
    # 9010 for gfx90a, 12001 for gfx1201.
    math(EXPR number "1000 * ${CMAKE_MATCH_1} + 100 * ${CMAKE_MATCH_2} + 0x${CMAKE_MATCH_3}")
    file(WRITE "${directory}/isa_version.ll"
      "@__oclc_ISA_version = linkonce_odr protected local_unnamed_addr addrspace(4) constant i32 ${number}\n")
    execute_process(
      COMMAND "${MULTIKV_HIP_CLANG}" -x ir --target=amdgcn-amd-amdhsa -nogpulib -Wno-override-module -emit-llvm
              -c "${directory}/isa_version.ll" -o "${library}"
      COMMAND_ERROR_IS_FATAL ANY)
  endif()
endfunction()

# The library without kernels, which multikv_add_hip_family adds.
function(multikv_add_hip_backend)
  # One run hipifies all files into the same folders of the build tree. Outputs that stay the same cause no work.
  set(directory "${CMAKE_BINARY_DIR}/hip")
  file(GLOB_RECURSE sources RELATIVE "${CMAKE_SOURCE_DIR}/csrc" CONFIGURE_DEPENDS
    csrc/cuda/*.h csrc/cuda/*.cpp csrc/cuda/*.cuh csrc/cuda/*.cu)
  list(FILTER sources EXCLUDE REGEX "^cuda/vendor/")
  list(TRANSFORM sources PREPEND "${CMAKE_SOURCE_DIR}/csrc/" OUTPUT_VARIABLE dependencies)
  list(TRANSFORM sources PREPEND "${directory}/" OUTPUT_VARIABLE hipified)
  add_custom_command(
    OUTPUT ${hipified}
    COMMAND "${Python3_EXECUTABLE}" "${CMAKE_SOURCE_DIR}/cmake/hipify.py" "${directory}" ${sources}
    DEPENDS cmake/hipify.py ${dependencies}
    WORKING_DIRECTORY "${CMAKE_SOURCE_DIR}/csrc"
    COMMENT "Hipifying"
    VERBATIM)

  # The host's compiler serves for cuda/*.cpp, as for all files that include torch's headers.
  list(FILTER hipified INCLUDE REGEX "/cuda/[^/]+\\.cpp$")
  add_library(multikv_hip SHARED ${hipified})
  target_compile_definitions(multikv_hip PRIVATE __HIP_PLATFORM_AMD__=1)
  # Hipified files come before their CUDA originals in csrc; csrc/hip has "vendor/...".
  target_include_directories(multikv_hip BEFORE PRIVATE "${directory}" csrc/hip)
  target_include_directories(multikv_hip SYSTEM PRIVATE "${MULTIKV_HIP_INCLUDE}")
  target_link_libraries(multikv_hip PRIVATE frontend multikv_torch "${MULTIKV_HIP_LIBRARY}" ${CMAKE_DL_LIBS})
  list(TRANSFORM MULTIKV_HIP_ARCHS_BUILT REPLACE ":.*" "" OUTPUT_VARIABLE archs)  # gfx90a:xnack- is code for a gfx90a
  list(REMOVE_DUPLICATES archs)
  multikv_finish_library(multikv_hip rocm "${MULTIKV_HIP_VERSION}" "${archs}")
endfunction()

# Compiles each hipified source of a family to an object, and adds the objects to the library.
function(multikv_add_hip_family name arithmetic)
  multikv_gpu_sources(sources ${name})
  multikv_contraction_option(contraction ${arithmetic})
  list(TRANSFORM MULTIKV_HIP_ARCHS_BUILT PREPEND "--offload-arch=" OUTPUT_VARIABLE archs)
  set(directory "${CMAKE_BINARY_DIR}/hip")
  foreach(source IN LISTS sources)
    # Divisions and square roots are rounded as IEEE says.
    set(targets ${archs} -fhip-fp32-correctly-rounded-divide-sqrt)
    if(source MATCHES "^cuda/(${MULTIKV_HIP_HOST_SOURCES})[.]cu$")
      set(targets --cuda-host-only)
    endif()
    set(object "${directory}/${source}.o")
    add_custom_command(
      OUTPUT "${object}"
      COMMAND ${HIPCC} -c "${directory}/${source}" -o "${object}" -MD -MT "${object}" -MF "${object}.d"
              ${MULTIKV_HIP_FLAGS} ${targets} ${contraction} ${MULTIKV_HIP_FIRST_INCLUDE}
              "-I${directory}" "-I${CMAKE_SOURCE_DIR}/csrc/hip" "-I${CMAKE_SOURCE_DIR}/csrc"
      DEPENDS "${directory}/${source}" ${MULTIKV_HIP_PRECOMPILED}
      DEPFILE "${object}.d"
      COMMENT "Building HIP object ${source}.o"
      VERBATIM)
    set_source_files_properties("${object}" PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
    target_sources(multikv_hip PRIVATE "${object}")
  endforeach()
endfunction()
