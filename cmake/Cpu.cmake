# The CPU backend: kernels once per instruction set, everything else once.

# Each list begins with -march, so that a -march in CXXFLAGS does not raise what an object may use.
set(MULTIKV_ISA_FLAGS_baseline -march=x86-64)
set(MULTIKV_ISA_FLAGS_avx2 -march=x86-64 -mavx2 -mfma -mf16c)
set(MULTIKV_ISA_FLAGS_avx512 -march=x86-64 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c
    -mprefer-vector-width=512 ${MULTIKV_AVX512_FLAGS})
set(MULTIKV_ISAS baseline)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$")
  list(APPEND MULTIKV_ISAS avx2 avx512)
else()
  set(MULTIKV_ISA_FLAGS_baseline)
endif()

# The library without kernels, which multikv_add_cpu_family adds.
function(multikv_add_cpu_backend)
  file(GLOB sources CONFIGURE_DEPENDS csrc/cpu/*.cpp)
  add_library(multikv_cpu SHARED csrc/schema.cpp ${sources})
  if("avx2" IN_LIST MULTIKV_ISAS)
    target_compile_definitions(multikv_cpu PRIVATE MULTIKV_X86_ISAS)
  endif()
  # A weak symbol in an object of one instruction set could be the copy that the linker keeps, and then an older CPU
  # would run AVX-512.
  add_custom_command(TARGET multikv_cpu PRE_LINK
    COMMAND "${Python3_EXECUTABLE}" "${CMAKE_SOURCE_DIR}/cmake/check_weak_symbols.py" "${CMAKE_NM}"
            "$<TARGET_GENEX_EVAL:multikv_cpu,$<TARGET_PROPERTY:multikv_cpu,MULTIKV_ISA_OBJECTS>>"
    VERBATIM COMMAND_EXPAND_LISTS)
  target_link_libraries(multikv_cpu PRIVATE frontend multikv_torch)
  multikv_finish_library(multikv_cpu cpu "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}" "${MULTIKV_ISAS}")
endfunction()

# One object library for each instruction set: cpu_<isa>_<name>. Contraction is off in every family, because the baseline
# has no fused operations, and all instruction sets give the same bits.
function(multikv_add_cpu_family name)
  foreach(isa IN LISTS MULTIKV_ISAS)
    set(objects cpu_${isa}_${name})
    add_library(${objects} OBJECT "csrc/cpu/isa/${name}.cpp")
    target_compile_options(${objects} PRIVATE -fno-exceptions ${MULTIKV_ISA_FLAGS_${isa}} -ffp-contract=off)
    target_link_libraries(multikv_cpu PRIVATE ${objects})
    set_property(TARGET multikv_cpu APPEND PROPERTY MULTIKV_ISA_OBJECTS "$<TARGET_OBJECTS:${objects}>")
  endforeach()
endfunction()
