# Installs the libraries, the headers, the CMake and pkg-config packages, and the documents with the licences, in two
# components: safetensors_lazy_runtime for programs, safetensors_lazy_development for those who build programs.
#
# CMake skips the install rules of a directory that was added with EXCLUDE_FROM_ALL. Where an enclosing project has done that
# and still set SAFETENSORS_LAZY_INSTALL, the rules go to the directory above the excluded one.

function(safetensors_lazy_install source_dir binary_dir package_dir doc_dir)
  set(runtime COMPONENT safetensors_lazy_runtime)
  set(development COMPONENT safetensors_lazy_development)
  install(TARGETS safetensors_lazy safetensors_lazy_static EXPORT safetensors_lazyTargets
    LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" ${runtime} NAMELINK_COMPONENT safetensors_lazy_development
    ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}" ${development})
  install(EXPORT safetensors_lazyTargets NAMESPACE safetensors_lazy:: DESTINATION "${package_dir}" ${development})
  install(FILES
    "${binary_dir}/safetensors_lazyConfig.cmake"
    "${binary_dir}/safetensors_lazyConfigVersion.cmake"
    DESTINATION "${package_dir}" ${development})
  install(FILES "${source_dir}/include/safetensors_lazy.h" "${source_dir}/include/safetensors_lazy.hpp"
    DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" ${development})
  install(FILES "${binary_dir}/safetensors_lazy.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig" ${development})
  install(FILES
    "${source_dir}/LICENSE" "${source_dir}/LICENSE-MIT" "${source_dir}/LICENSE-APACHE"
    "${binary_dir}/THIRD-PARTY-LICENSES.txt"
    DESTINATION "${doc_dir}" ${runtime})
  # The documents, with all that their links lead to.
  install(FILES
    "${binary_dir}/README.md" "${source_dir}/CHANGELOG.md" "${source_dir}/CONTRIBUTING.md" "${source_dir}/DESIGN.md"
    DESTINATION "${doc_dir}" ${development})
  install(FILES "${source_dir}/benches/README.md" DESTINATION "${doc_dir}/benches" ${development})
  install(DIRECTORY "${source_dir}/docs" "${source_dir}/examples" DESTINATION "${doc_dir}" ${development}
    PATTERN __pycache__ EXCLUDE)
endfunction()

# The directory above the outermost excluded one; this directory if none is.
set(install_dir "${CMAKE_CURRENT_SOURCE_DIR}")
set(directory "${CMAKE_CURRENT_SOURCE_DIR}")
while(directory)
  get_property(parent DIRECTORY "${directory}" PROPERTY PARENT_DIRECTORY)
  get_property(excluded DIRECTORY "${directory}" PROPERTY EXCLUDE_FROM_ALL)
  if(excluded AND parent)
    set(install_dir "${parent}")
  endif()
  set(directory "${parent}")
endwhile()

if(install_dir STREQUAL CMAKE_CURRENT_SOURCE_DIR)
  safetensors_lazy_install("${CMAKE_CURRENT_SOURCE_DIR}" "${CMAKE_CURRENT_BINARY_DIR}" "${package_dir}" "${doc_dir}")
else()
  # Expanded now: at the end of that directory the variables of this one are gone.
  cmake_language(EVAL CODE "
    cmake_language(DEFER DIRECTORY [==[${install_dir}]==] CALL safetensors_lazy_install
      [==[${CMAKE_CURRENT_SOURCE_DIR}]==] [==[${CMAKE_CURRENT_BINARY_DIR}]==] [==[${package_dir}]==] [==[${doc_dir}]==])")
endif()
