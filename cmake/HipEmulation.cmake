# The emulation of an AMD GPU on the CPU, for tests: the hipified kernels, compiled for the CPU by clang-22, with what
# tests/hip/emulation puts in the place of the GPU and of AMD's runtime. No other target needs it:
#
#   cmake --build build/cmake --target hip_emulation

set(MULTIKV_EMULATION "${CMAKE_SOURCE_DIR}/tests/hip/emulation")

# Sets MULTIKV_HAS_EMULATION, and adds the library without kernels, which multikv_add_emulated_family adds.
function(multikv_add_hip_emulation)
  set(MULTIKV_HAS_EMULATION OFF PARENT_SCOPE)
  if(NOT MULTIKV_HIP_CLANG OR NOT EXISTS "${MULTIKV_EMULATION}")
    return()
  endif()
  set(MULTIKV_HAS_EMULATION ON PARENT_SCOPE)
  set(directory "${CMAKE_BINARY_DIR}/emulation")
  file(GLOB_RECURSE hipified RELATIVE "${CMAKE_SOURCE_DIR}/csrc" CONFIGURE_DEPENDS
    csrc/cuda/*.h csrc/cuda/*.cuh csrc/cuda/*.cu)
  list(FILTER hipified EXCLUDE REGEX "^cuda/vendor/")
  file(GLOB vendor RELATIVE "${CMAKE_SOURCE_DIR}/csrc/hip" CONFIGURE_DEPENDS csrc/hip/vendor/*)
  list(TRANSFORM hipified PREPEND "${CMAKE_BINARY_DIR}/hip/" OUTPUT_VARIABLE from_hipified)
  list(TRANSFORM vendor PREPEND "${CMAKE_SOURCE_DIR}/csrc/hip/" OUTPUT_VARIABLE from_vendor)
  set(rewritten ${hipified} ${vendor})
  list(TRANSFORM rewritten PREPEND "${directory}/")
  set(rewrite "${Python3_EXECUTABLE}" "${MULTIKV_EMULATION}/rewrite.py")
  add_custom_command(
    OUTPUT ${rewritten}
    COMMAND ${rewrite} "${CMAKE_BINARY_DIR}/hip" "${directory}" ${hipified}
    COMMAND ${rewrite} "${CMAKE_SOURCE_DIR}/csrc/hip" "${directory}" ${vendor}
    DEPENDS "${MULTIKV_EMULATION}/rewrite.py" ${from_hipified} ${from_vendor}
    COMMENT "Rewriting launches"
    VERBATIM)
  # The rewritten files are sources of the library only so that they are written before clang-22 compiles them.
  set_source_files_properties(${rewritten} PROPERTIES HEADER_FILE_ONLY ON)
  # The host's compiler compiles the two files that include torch's headers or AMD's runtime API.
  add_library(hip_emulation SHARED EXCLUDE_FROM_ALL
    "${MULTIKV_EMULATION}/backend.cpp" "${MULTIKV_EMULATION}/runtime.cpp" ${rewritten})
  target_compile_definitions(hip_emulation PRIVATE __HIP_PLATFORM_AMD__=1)
  target_include_directories(hip_emulation BEFORE PRIVATE "${CMAKE_BINARY_DIR}/hip" csrc/hip)
  target_include_directories(hip_emulation SYSTEM PRIVATE "${MULTIKV_HIP_INCLUDE}")
  target_link_libraries(hip_emulation PRIVATE frontend multikv_torch ${CMAKE_DL_LIBS})
  target_link_options(hip_emulation PRIVATE -Wl,-z,defs -Wl,-Bsymbolic)
  set_target_properties(hip_emulation PROPERTIES LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/emulation")
  multikv_add_emulation_object("${MULTIKV_EMULATION}/execution.cpp" "${directory}/execution.cpp.o" EXACT)
endfunction()

function(multikv_add_emulated_family name arithmetic)
  multikv_gpu_sources(sources ${name})
  foreach(source IN LISTS sources)
    set(path "${CMAKE_BINARY_DIR}/emulation/${source}")
    multikv_add_emulation_object("${path}" "${path}.o" ${arithmetic})
  endforeach()
endfunction()

# The emulation calls the kernel once for each lane of a wave, and is slow in any case. -O1 compiles sooner than -O3.
function(multikv_add_emulation_object source object arithmetic)
  multikv_contraction_option(contraction ${arithmetic})
  add_custom_command(
    OUTPUT "${object}"
    COMMAND ${MULTIKV_HIP_LAUNCHER} "${MULTIKV_HIP_CLANG}" -x c++ -c "${source}" -o "${object}"
            -MD -MT "${object}" -MF "${object}.d" -std=c++20 -O1 -march=x86-64-v3 -fPIC -fvisibility=hidden
            ${contraction} -fno-math-errno -D__HIP_PLATFORM_AMD__=1 "-I${MULTIKV_EMULATION}/include"
            "-I${CMAKE_SOURCE_DIR}/tests/hip" "-I${CMAKE_BINARY_DIR}/emulation" "-I${CMAKE_SOURCE_DIR}/csrc"
            -idirafter "${MULTIKV_HIP_INCLUDE}"
    DEPENDS "${source}"
    DEPFILE "${object}.d"
    COMMENT "Building emulation object ${object}"
    VERBATIM)
  set_source_files_properties("${object}" PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  target_sources(hip_emulation PRIVATE "${object}")
endfunction()
