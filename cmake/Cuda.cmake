# The CUDA backend. It needs nvcc, but neither a GPU nor a CUDA build of torch.

# Sets `result` to the architectures of MULTIKV_CUDA_ARCHS; if it is empty, to those of this machine's GPUs. If it is
# "portable", or nvidia-smi finds no GPU, `result` is a portable set: one binary per generation, and PTX for what comes
# after.
function(multikv_cuda_architectures result)
  set(archs "${MULTIKV_CUDA_ARCHS}")
  if(NOT archs OR archs STREQUAL "portable")
    set(failed true)
    if(NOT archs)
      execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
        OUTPUT_VARIABLE archs OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
    endif()
    if(failed OR NOT archs MATCHES "^[0-9]+\\.[0-9]+")
      set(archs 80 90 100 120)
      execute_process(COMMAND "${MULTIKV_NVCC}" --list-gpu-arch OUTPUT_VARIABLE known)  # an older nvcc knows fewer
      foreach(arch IN LISTS archs)
        if(NOT known MATCHES "compute_${arch}\n")
          list(REMOVE_ITEM archs ${arch})
        endif()
      endforeach()
      string(APPEND archs "+PTX")
    endif()
  endif()
  string(REGEX REPLACE "[ ,\n]+" ";" archs "${archs}")
  string(REPLACE "." "" archs "${archs}")
  list(REMOVE_DUPLICATES archs)
  set(${result} "${archs}" PARENT_SCOPE)
endfunction()

# A macro, because a language must be enabled in the top-level scope.
macro(multikv_enable_cuda)
  multikv_cuda_architectures(MULTIKV_CUDA_ARCHS_BUILT)
  set(CMAKE_CUDA_ARCHITECTURES "${MULTIKV_CUDA_ARCHS_BUILT}")
  list(TRANSFORM CMAKE_CUDA_ARCHITECTURES APPEND "-real")
  list(TRANSFORM CMAKE_CUDA_ARCHITECTURES REPLACE "\\+PTX-real$" "")
  set(CMAKE_CUDA_COMPILER "${MULTIKV_NVCC}")
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  # The static runtime binds to whatever driver is there, and needs no CUDA package beside torch's.
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  enable_language(CUDA)
endmacro()

# The library without kernels, which multikv_add_cuda_family adds.
function(multikv_add_cuda_backend)
  file(GLOB sources CONFIGURE_DEPENDS csrc/cuda/*.cpp)
  add_library(multikv_cuda SHARED ${sources})
  set_target_properties(multikv_cuda PROPERTIES LINKER_LANGUAGE CUDA)
  target_include_directories(multikv_cuda PRIVATE csrc/cuda)  # of "vendor/..."
  target_include_directories(multikv_cuda SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  target_link_libraries(multikv_cuda PRIVATE frontend multikv_torch ${CMAKE_DL_LIBS})
  multikv_finish_library(multikv_cuda cuda "${CMAKE_CUDA_COMPILER_VERSION}" "${MULTIKV_CUDA_ARCHS_BUILT}")
endfunction()

# The object library cuda_<name>. Its include path does not hold torch.
function(multikv_add_cuda_family name arithmetic archs)
  multikv_gpu_sources(sources ${name})
  list(TRANSFORM sources PREPEND "csrc/")
  set(architectures "${CMAKE_CUDA_ARCHITECTURES}")
  foreach(arch IN LISTS archs)
    string(REGEX REPLACE "[af]$" "" generation "${arch}")
    # An architecture without a suffix has machine code and PTX. Its PTX is kept, because PTX of a special architecture
    # (90a) does not run on later GPUs.
    if("${generation}" IN_LIST architectures)
      list(APPEND architectures "${generation}-virtual" "${generation}-real")
      list(REMOVE_ITEM architectures "${generation}")
    endif()
    if("${generation}-real" IN_LIST architectures)
      list(TRANSFORM architectures REPLACE "^${generation}-real$" "${arch}-real")
      string(TOUPPER "MULTIKV_HAS_SM${arch}" has_arch)
      list(APPEND definitions "${has_arch}")
    endif()
  endforeach()
  set(may_contract true)
  if(arithmetic STREQUAL "EXACT")
    set(may_contract false)
  endif()
  add_library(cuda_${name} OBJECT ${sources})
  set_target_properties(cuda_${name} PROPERTIES CUDA_ARCHITECTURES "${architectures}")
  target_include_directories(cuda_${name} PRIVATE csrc/cuda)
  target_compile_definitions(cuda_${name} PRIVATE ${definitions})
  target_compile_options(cuda_${name} PRIVATE
    --expt-relaxed-constexpr -fmad=${may_contract} --threads=2 -Xfatbin=-compress-all ${MULTIKV_CUDA_FLAGS})
  target_link_libraries(multikv_cuda PRIVATE cuda_${name})
endfunction()
