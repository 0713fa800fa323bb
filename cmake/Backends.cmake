# Which backends are built, and what their libraries have in common.

function(multikv_use_ccache)
  find_program(MULTIKV_CCACHE NAMES ccache sccache)
  if(DEFINED ENV{CCACHE_DISABLE})
    set(MULTIKV_CCACHE "" PARENT_SCOPE)
  elseif(MULTIKV_CCACHE)
    set(CMAKE_CXX_COMPILER_LAUNCHER "${MULTIKV_CCACHE}" PARENT_SCOPE)
    set(CMAKE_CUDA_COMPILER_LAUNCHER "${MULTIKV_CCACHE}" PARENT_SCOPE)
  endif()
endfunction()

# Sets MULTIKV_BUILD from MULTIKV_BACKENDS and the compilers that are there.
function(multikv_choose_backends)
  find_program(MULTIKV_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME PATH_SUFFIXES bin PATHS /usr/local/cuda)
  find_program(MULTIKV_HIPCC hipcc HINTS ENV ROCM_PATH PATH_SUFFIXES bin PATHS /opt/rocm)
  if(MULTIKV_BACKENDS STREQUAL "auto")
    set(build cpu)
    if(MULTIKV_NVCC)
      list(APPEND build cuda)
    endif()
    if(MULTIKV_HIPCC)
      list(APPEND build hip)
    endif()
  else()
    string(REPLACE "," ";" build "${MULTIKV_BACKENDS}")
    foreach(backend IN LISTS build)
      if(NOT backend MATCHES "^(cpu|cuda|hip)$")
        message(FATAL_ERROR "MULTIKV_BACKENDS: expected some of cpu,cuda,hip, or auto; got '${backend}'")
      endif()
    endforeach()
    if("cuda" IN_LIST build AND NOT MULTIKV_NVCC)
      message(FATAL_ERROR "MULTIKV_BACKENDS names cuda, but nvcc was not found")
    endif()
    if("hip" IN_LIST build AND NOT MULTIKV_HIPCC)
      message(FATAL_ERROR "MULTIKV_BACKENDS names hip, but hipcc was not found")
    endif()
    list(PREPEND build cpu)  # holds the schema, so it is always built
    list(REMOVE_DUPLICATES build)
  endif()
  message(STATUS "multikv: building ${build}")
  set(MULTIKV_BUILD "${build}" PARENT_SCOPE)
endfunction()

# Links a backend's library, installs it, and writes beside it the manifest that the platform layer reads before it
# opens the library. The manifest is written after each link, so it always carries the library's build id.
function(multikv_finish_library target name toolkit architectures)
  add_dependencies(${target} build_id)
  target_include_directories(${target} PRIVATE "${MULTIKV_BUILD_ID_DIR}")
  target_link_options(${target} PRIVATE -Wl,-z,defs -Wl,--as-needed)
  set_target_properties(${target} PROPERTIES
    OUTPUT_NAME multikv_${name}
    LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/lib")
  set(manifest "${CMAKE_BINARY_DIR}/lib/multikv_${name}.json")
  add_custom_command(TARGET ${target} POST_BUILD
    COMMAND "${Python3_EXECUTABLE}" cmake/write_manifest.py "${manifest}" "${MULTIKV_BUILD_ID_DIR}/multikv_build_id.h"
            "${name}" "${toolkit}" "${MULTIKV_TORCH_VERSION}" ${architectures}
    BYPRODUCTS "${manifest}"
    WORKING_DIRECTORY "${CMAKE_SOURCE_DIR}"
    VERBATIM)
  install(TARGETS ${target} LIBRARY DESTINATION .)
  install(FILES "${manifest}" DESTINATION .)
endfunction()
