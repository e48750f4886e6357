# The library in source trees of other projects, the licences that it is installed with, and the links of its documents.
# Needs the variables prefix and library_dir.

get_filename_component(source_tree "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
set(ST_CARGO_TARGET_DIR "${CMAKE_CURRENT_BINARY_DIR}/cargo" CACHE PATH
  "Where cargo builds for projects that include the source tree: that of another build saves compiling everything again")
find_program(GIT git)
find_program(CARGO cargo HINTS "$ENV{HOME}/.cargo/bin")

# --- engines that include the source tree ---------------------------------------------------------------------------------------

set(engine_options "-DCMAKE_C_COMPILER=${CMAKE_C_COMPILER}" "-DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}"
  -G "${CMAKE_GENERATOR}" "-DCMAKE_MAKE_PROGRAM=${CMAKE_MAKE_PROGRAM}")
function(add_engine_test case)
  if(NOT CARGO)
    add_skipped_test(package.engine.${case} "there is no cargo")
    return()
  endif()
  add_test(NAME package.engine.${case}
    COMMAND sh "${CMAKE_CURRENT_SOURCE_DIR}/engine/test.sh" ${case} "${source_tree}" "${CMAKE_CURRENT_BINARY_DIR}/engine/${case}"
            "${ST_CARGO_TARGET_DIR}" "${CMAKE_COMMAND}" ${engine_options} ${ARGN})
  # They compile the library, unless another has: one after the other.
  set_tests_properties(package.engine.${case} PROPERTIES RESOURCE_LOCK cargo)
endfunction()

add_engine_test(subdirectory)
add_engine_test(excluded)
add_engine_test(not_installed)
add_engine_test(c_only)
if(GIT)
  # Another copy of the sources is compiled again: without optimisation this is quick.
  add_engine_test(fetch_content -DCMAKE_BUILD_TYPE=Debug -DEXPECTED_CMAKE_BUILD_TYPE=Debug)
else()
  add_skipped_test(package.engine.fetch_content "there is no git")
endif()

# --- licences -------------------------------------------------------------------------------------------------------------------

set(licenses "${prefix}/share/doc/safetensors_lazy/THIRD-PARTY-LICENSES.txt")
foreach(case complete missing_text)
  if(CARGO)
    add_test(NAME package.licenses.${case} COMMAND sh "${CMAKE_CURRENT_SOURCE_DIR}/package/licenses.sh" ${case}
      "${source_tree}" "${licenses}" "${CARGO}" "${CMAKE_COMMAND}")
  else()
    add_skipped_test(package.licenses.${case} "there is no cargo")
  endif()
endforeach()

# --- links ----------------------------------------------------------------------------------------------------------------------

add_test(NAME package.links.installed COMMAND sh "${CMAKE_CURRENT_SOURCE_DIR}/package/links.sh" "${prefix}/share/doc/safetensors_lazy")
if(CARGO)
  add_test(NAME package.links.crate COMMAND sh "${CMAKE_CURRENT_SOURCE_DIR}/package/crate.sh" "${source_tree}" "${CARGO}"
    "${CMAKE_CURRENT_BINARY_DIR}/crate")
else()
  add_skipped_test(package.links.crate "there is no cargo")
endif()
