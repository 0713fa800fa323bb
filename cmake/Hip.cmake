# The HIP backend: the CUDA sources, hipified into the build tree and compiled by hipcc, with AMD's vendor headers from
# csrc/hip. It needs neither an AMD GPU nor a ROCm build of torch.

# Sets HIPCC (the command), MULTIKV_HIP_VERSION, MULTIKV_HIP_INCLUDE and MULTIKV_HIP_LIBRARY in the caller.
macro(multikv_find_hip)
  # Without this, Debian's hipcc calls nvcc where there is one.
  set(HIPCC "${CMAKE_COMMAND}" -E env HIP_PLATFORM=amd "${MULTIKV_HIPCC}")
  execute_process(COMMAND ${HIPCC} --version OUTPUT_VARIABLE found ERROR_QUIET)
  if(NOT found MATCHES "HIP version: ([0-9.]+)")
    message(FATAL_ERROR "${MULTIKV_HIPCC} --version does not tell the version of HIP: ${found}")
  endif()
  set(MULTIKV_HIP_VERSION "${CMAKE_MATCH_1}")
  get_filename_component(root "${MULTIKV_HIPCC}" REALPATH)
  get_filename_component(root "${root}/../.." ABSOLUTE)
  find_path(MULTIKV_HIP_INCLUDE hip/hip_runtime_api.h HINTS "${root}/include" "${root}/../include" REQUIRED)
  find_library(MULTIKV_HIP_LIBRARY amdhip64 HINTS "${root}/lib" "${root}/../lib" REQUIRED)
  # hipcc is a script: its own time says nothing of the compiler that it calls.
  get_filename_component(launcher "${MULTIKV_CCACHE}" NAME)
  if(launcher STREQUAL "ccache")
    set(HIPCC "${CMAKE_COMMAND}" -E env HIP_PLATFORM=amd "CCACHE_COMPILERCHECK=%compiler% --version"
              "${MULTIKV_CCACHE}" "${MULTIKV_HIPCC}")
  endif()
endmacro()

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
  multikv_hip_architectures(archs)
  list(TRANSFORM archs REPLACE ":.*" "")  # gfx90a:xnack- is code for a gfx90a
  list(REMOVE_DUPLICATES archs)
  multikv_finish_library(multikv_hip rocm "${MULTIKV_HIP_VERSION}" "${archs}")
endfunction()

function(multikv_hip_architectures result)
  string(REGEX REPLACE "[ ,]+" ";" archs "${MULTIKV_HIP_ARCHS}")
  set(${result} "${archs}" PARENT_SCOPE)
endfunction()

# One object for each source, in the place of the source.
function(multikv_add_hip_family name arithmetic)
  multikv_gpu_sources(sources ${name})
  multikv_contraction_option(contraction ${arithmetic})
  multikv_hip_architectures(archs)
  list(TRANSFORM archs PREPEND "--offload-arch=")
  set(directory "${CMAKE_BINARY_DIR}/hip")
  foreach(source IN LISTS sources)
    set(object "${directory}/${source}.o")
    add_custom_command(
      OUTPUT "${object}"
      COMMAND ${HIPCC} -c "${directory}/${source}" -o "${object}" -MD -MT "${object}" -MF "${object}.d"
              -std=c++20 -O3 -DNDEBUG -fPIC -fvisibility=hidden -Wall -Wextra ${archs}
              "-I${directory}" "-I${CMAKE_SOURCE_DIR}/csrc/hip" "-I${CMAKE_SOURCE_DIR}/csrc"
              # Divisions and square roots are rounded as IEEE says.
              -fhip-fp32-correctly-rounded-divide-sqrt ${contraction}
      DEPENDS "${directory}/${source}"
      DEPFILE "${object}.d"
      COMMENT "Building HIP object ${source}.o"
      VERBATIM)
    set_source_files_properties("${object}" PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
    target_sources(multikv_hip PRIVATE "${object}")
  endforeach()
endfunction()
