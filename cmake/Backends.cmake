# Which backends are built, and what their libraries have in common.

function(multikv_use_ccache)
  find_program(MULTIKV_CCACHE NAMES ccache sccache)
  if(MULTIKV_CCACHE)
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

# Links a backend's library, installs it, and writes beside it what the platform layer must know before loading it.
function(multikv_finish_library target name toolkit architectures)
  target_link_options(${target} PRIVATE -Wl,-z,defs -Wl,--as-needed)
  set_target_properties(${target} PROPERTIES
    OUTPUT_NAME multikv_${name}
    LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/lib")
  list(TRANSFORM architectures REPLACE "(.+)" "\"\\1\"")
  list(JOIN architectures ", " architectures)
  set(manifest "${CMAKE_BINARY_DIR}/lib/multikv_${name}.json")
  file(WRITE "${manifest}"
    "{\"name\": \"${name}\", \"toolkit\": \"${toolkit}\", \"torch\": \"${MULTIKV_TORCH_VERSION}\", "
    "\"architectures\": [${architectures}]}\n")
  install(TARGETS ${target} LIBRARY DESTINATION .)
  install(FILES "${manifest}" DESTINATION .)
endfunction()
