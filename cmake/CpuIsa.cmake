# The CPU backend: csrc/cpu/isa/*.cpp once per instruction set, everything else once.

# Each begins with -march, so that one in CXXFLAGS does not raise what an object may use.
set(MULTIKV_ISA_FLAGS_baseline -march=x86-64)
set(MULTIKV_ISA_FLAGS_avx2 -march=x86-64 -mavx2 -mfma -mf16c)
set(MULTIKV_ISA_FLAGS_avx512 -march=x86-64 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512)

function(multikv_add_cpu_backend families)
  add_library(multikv_cpu SHARED
    csrc/schema.cpp
    csrc/cpu/backend.cpp
    csrc/cpu/dispatch.cpp
    csrc/cpu/parallel.cpp)
  set(isas baseline)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$")
    list(APPEND isas avx2 avx512)
    target_compile_definitions(multikv_cpu PRIVATE MULTIKV_X86_ISAS)
  else()
    set(MULTIKV_ISA_FLAGS_baseline)
  endif()
  list(TRANSFORM families REPLACE "(.+)" "csrc/cpu/isa/\\1.cpp" OUTPUT_VARIABLE sources)
  foreach(isa IN LISTS isas)
    add_library(cpu_${isa} OBJECT ${sources})
    target_compile_options(cpu_${isa} PRIVATE -fno-exceptions ${MULTIKV_ISA_FLAGS_${isa}})
    target_link_libraries(multikv_cpu PRIVATE cpu_${isa})
    list(APPEND objects "$<TARGET_OBJECTS:cpu_${isa}>")
  endforeach()
  # A weak symbol in one of these objects could be the copy that the linker keeps, and run AVX-512 on an older CPU.
  add_custom_command(TARGET multikv_cpu PRE_LINK
    COMMAND "${Python3_EXECUTABLE}" "${CMAKE_SOURCE_DIR}/cmake/check_weak_symbols.py" "${CMAKE_NM}" ${objects}
    VERBATIM COMMAND_EXPAND_LISTS)
  target_link_libraries(multikv_cpu PRIVATE frontend multikv_torch)
  multikv_finish_library(multikv_cpu cpu "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}" "${isas}")
endfunction()
