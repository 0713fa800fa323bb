# The target multikv_torch: headers of the stable ABI, and the library that implements it.

function(multikv_find_torch)
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  set(Python3_EXECUTABLE "${Python3_EXECUTABLE}" PARENT_SCOPE)
  execute_process(
    COMMAND "${Python3_EXECUTABLE}" -W ignore -c
      "import torch; print(torch.__path__[0] + ';' + torch.__version__.split('+')[0])"
    OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "multikv needs torch >= 2.11 in ${Python3_EXECUTABLE}")
  endif()
  list(GET found 0 root)
  list(GET found 1 version)
  if(version VERSION_LESS 2.11)
    message(FATAL_ERROR "multikv needs torch >= 2.11, found ${version}")
  endif()
  add_library(multikv_torch INTERFACE)
  target_include_directories(multikv_torch SYSTEM INTERFACE "${root}/include")
  target_link_libraries(multikv_torch INTERFACE "${root}/lib/libtorch_cpu.so" "${root}/lib/libc10.so")
  # One library for every torch from 2.11 on.
  target_compile_definitions(multikv_torch INTERFACE TORCH_TARGET_VERSION=0x020b000000000000)
  set(MULTIKV_TORCH_VERSION "${version}" PARENT_SCOPE)
endfunction()
