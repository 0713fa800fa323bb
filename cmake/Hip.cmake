# The HIP backend: the CUDA sources, hipified into the build tree and compiled by hipcc, with AMD's gpu.cuh and vendor.h from
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

function(multikv_add_hip_backend families)
  multikv_find_hip()
  string(REGEX REPLACE "[ ,]+" ";" archs "${MULTIKV_HIP_ARCHS}")
  list(TRANSFORM archs PREPEND "--offload-arch=" OUTPUT_VARIABLE arch_options)

  # One run hipifies all files; of its outputs, those that stay the same cause no work.
  set(directory "${CMAKE_BINARY_DIR}/hip")
  file(GLOB_RECURSE sources RELATIVE "${CMAKE_SOURCE_DIR}" CONFIGURE_DEPENDS csrc/cuda/*)
  list(FILTER sources EXCLUDE REGEX "csrc/cuda/vendor/")
  list(TRANSFORM sources REPLACE "csrc/(.+)" "${directory}/\\1" OUTPUT_VARIABLE hipified)
  add_custom_command(
    OUTPUT ${hipified}
    COMMAND "${Python3_EXECUTABLE}" cmake/hipify.py "${directory}" ${sources}
    DEPENDS cmake/hipify.py ${sources}
    WORKING_DIRECTORY "${CMAKE_SOURCE_DIR}"
    COMMENT "Hipifying"
    VERBATIM)

  # What a hipified file does not find beside itself lies where it would from csrc/hip: gpu.cuh, ../params.h.
  set(include_hip "-iquote${directory}" "-iquote${CMAKE_SOURCE_DIR}/csrc/hip" "-iquote${CMAKE_SOURCE_DIR}/csrc")
  foreach(family IN LISTS families)
    set(object "${directory}/${family}.o")
    set(source "${directory}/cuda/ops/${family}.cu")
    if(family STREQUAL "swap")
      set(source "${directory}/cuda/swap/swap.cu")
    endif()
    add_custom_command(
      OUTPUT "${object}"
      COMMAND ${HIPCC} -c "${source}" -o "${object}" -MD -MT "${object}" -MF "${object}.d"
              -std=c++20 -O3 -DNDEBUG -fPIC -fvisibility=hidden -Wall -Wextra ${arch_options} ${include_hip}
              # IEEE results, and none that fuses a multiply with an add: every backend writes the same bytes.
              -ffp-contract=off -fhip-fp32-correctly-rounded-divide-sqrt
      DEPENDS "${source}"
      DEPFILE "${object}.d"
      COMMENT "Building HIP object ${family}.o"
      VERBATIM)
    list(APPEND objects "${object}")
  endforeach()
  set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)

  # The host's compiler serves for backend.cpp, as for every other file that includes torch's headers.
  add_library(multikv_hip SHARED "${directory}/cuda/backend.cpp" ${objects})
  target_compile_definitions(multikv_hip PRIVATE __HIP_PLATFORM_AMD__=1)
  target_compile_options(multikv_hip PRIVATE ${include_hip})
  target_include_directories(multikv_hip SYSTEM PRIVATE "${MULTIKV_HIP_INCLUDE}")
  target_link_libraries(multikv_hip PRIVATE frontend multikv_torch "${MULTIKV_HIP_LIBRARY}" ${CMAKE_DL_LIBS})
  list(TRANSFORM archs REPLACE ":.*" "")  # gfx90a:xnack- is code for a gfx90a
  list(REMOVE_DUPLICATES archs)
  multikv_finish_library(multikv_hip rocm "${MULTIKV_HIP_VERSION}" "${archs}")
endfunction()
