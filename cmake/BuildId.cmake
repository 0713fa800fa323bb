# The build id: a digest over the sources of csrc. Libraries with different ids refuse to work together.

# Makes the target build_id, which writes multikv_build_id.h whenever a source changes. Sets MULTIKV_BUILD_ID_DIR, the
# header's folder.
function(multikv_make_build_id)
  set(directory "${CMAKE_BINARY_DIR}/generated")
  file(GLOB_RECURSE sources RELATIVE "${CMAKE_SOURCE_DIR}/csrc" CONFIGURE_DEPENDS
    csrc/*.h csrc/*.cpp csrc/*.cuh csrc/*.cu)
  list(TRANSFORM sources PREPEND "${CMAKE_SOURCE_DIR}/csrc/" OUTPUT_VARIABLE dependencies)
  # The sources are arguments as well, so that Ninja runs the command again after a source is removed.
  add_custom_command(
    OUTPUT "${directory}/multikv_build_id.h"
    COMMAND "${Python3_EXECUTABLE}" "${CMAKE_SOURCE_DIR}/cmake/write_build_id.py" "${directory}/multikv_build_id.h"
            ${sources}
    DEPENDS cmake/write_build_id.py ${dependencies}
    WORKING_DIRECTORY "${CMAKE_SOURCE_DIR}/csrc"
    COMMENT "Computing the build id"
    VERBATIM)
  add_custom_target(build_id DEPENDS "${directory}/multikv_build_id.h")
  set(MULTIKV_BUILD_ID_DIR "${directory}" PARENT_SCOPE)
endfunction()
