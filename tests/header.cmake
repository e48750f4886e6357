# The headers as hosts include them: after any other, after macros and names of their own, under the warnings that they turn on.
# Needs the variable include_dir.

set(header_dir "${CMAKE_CURRENT_LIST_DIR}/cpp/header")
set(header_generated "${CMAKE_CURRENT_BINARY_DIR}/header")

# --- every name that the header calls, as a function that anything could be passed to ----------------------------------------

set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${include_dir}/safetensors_lazy.hpp")
file(READ "${include_dir}/safetensors_lazy.hpp" header_text)
string(REGEX REPLACE "//[^\n]*" "" header_text "${header_text}")
string(REGEX REPLACE "\"[^\"\n]*\"" "" header_text "${header_text}")
# `name(`, `name<T>(`, and `(name)(`.
string(REGEX MATCHALL "[^A-Za-z0-9_][a-z_][a-z0-9_]*\\)?(<[A-Za-z0-9_:]*>\\)?)?\\(" called "${header_text}")
list(TRANSFORM called REPLACE "^.([a-z0-9_]+).*" "\\1")
list(REMOVE_DUPLICATES called)
list(FILTER called EXCLUDE REGEX "^st_")
list(REMOVE_ITEM called
  __has_include alignof bool catch const_cast decltype defined delete explicit if for noexcept operator reinterpret_cast requires
  return sizeof static_assert static_cast switch throw void while # keywords
  madvise mmap munmap size_t) # of the system
# Functions of namespaces: std has others of their names, or may have.
string(REGEX MATCHALL "\n(inline|template) [^\n]*[ >*&]([a-z_]+)\\([^\n]*{\n" own "${header_text}")
list(TRANSFORM own REPLACE ".*[ >*&]([a-z_]+)\\([^\n]*{\n" "\\1")
list(REMOVE_DUPLICATES own)
foreach(name quoted throw_if_failed c_string check_dtype evict)
  if(NOT name IN_LIST called OR NOT name IN_LIST own)
    message(FATAL_ERROR "host_names.hpp does not have ${name}, which the header defines and calls")
  endif()
endforeach()
set(host_names "")
foreach(namespace IN ITEMS "host" "" "std")
  set(names ${called})
  if(namespace STREQUAL "std")
    set(names ${own})
  endif()
  if(namespace)
    string(APPEND host_names "namespace ${namespace} {\n")
  endif()
  foreach(name IN LISTS names)
    string(APPEND host_names "template <class... Arguments> void ${name}(Arguments &&...) = delete;\n")
  endforeach()
  if(namespace)
    string(APPEND host_names "} // namespace ${namespace}\n")
  endif()
endforeach()
file(CONFIGURE OUTPUT "${header_generated}/host_names.hpp" CONTENT "${host_names}" @ONLY)

# --- compilers: that of the tests, and clang ------------------------------------------------------------------------------------

find_program(CLANGXX NAMES clang++ clang++-19 clang++-18 clang++-17 clang++-16 clang++-15 clang++-14)
set(warnings -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Werror
  -Wno-cpp) # <strstream> and others say that they are deprecated
set(include_dirs "-I${include_dir}" "-I${header_dir}" "-I${header_generated}")
set(option_17 -std=c++17)
set(option_20 -std=c++20)
set(option_23 -std=c++2b)

foreach(compiler cxx clang)
  set(program "${CMAKE_CXX_COMPILER}")
  if(compiler STREQUAL "clang")
    if(NOT CLANGXX)
      add_skipped_test(header.clang "there is no clang++")
      continue()
    elseif(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
      continue()
    endif()
    set(program "${CLANGXX}")
  endif()
  foreach(standard 17 20 23)
    # A compiler that is too old for a standard is not asked for it.
    execute_process(COMMAND "${program}" ${option_${standard}} -fsyntax-only -x c++ /dev/null RESULT_VARIABLE unknown ERROR_QUIET)
    if(unknown)
      add_skipped_test(header.${compiler}.cpp${standard} "${program} does not know ${option_${standard}}")
      continue()
    endif()
    set(compile "${program}" ${option_${standard}} ${warnings} -Wold-style-cast ${include_dirs})
    foreach(unit concepts after_standard_headers before_standard_headers after_host_macros after_host_names)
      add_test(NAME header.${compiler}.cpp${standard}.${unit} COMMAND ${compile} -fsyntax-only "${header_dir}/${unit}.cpp")
    endforeach()
  endforeach()
  # One compiler and one standard: this compiles more than a hundred times.
  if(compiler STREQUAL "cxx")
    add_test(NAME header.cxx.cpp17.after_each_standard_header COMMAND
      sh "${header_dir}/each_standard_header.sh" "${include_dir}/safetensors_lazy.hpp" "${header_dir}/standard_headers.hpp"
      "${program}" ${option_17} ${warnings} -Wold-style-cast ${include_dirs})
  endif()
  add_test(NAME header.${compiler}.c11.after_host_macros COMMAND
    "${program}" -x c -std=c11 ${warnings} ${include_dirs} -fsyntax-only "${header_dir}/after_host_macros.c")
  add_test(NAME header.${compiler}.c_in_cpp17.after_host_macros COMMAND
    "${program}" -x c++ -std=c++17 ${warnings} -Wold-style-cast ${include_dirs} -fsyntax-only "${header_dir}/after_host_macros.c")
endforeach()

# Two translation units of one program.
add_executable(cpp_header_linked "${header_dir}/linked.cpp")
add_library(cpp_header_linked_other OBJECT "${header_dir}/linked.cpp")
target_compile_definitions(cpp_header_linked PRIVATE LINKED_NAME=linked_one LINKED_MAIN)
target_compile_definitions(cpp_header_linked_other PRIVATE LINKED_NAME=linked_other)
target_link_libraries(cpp_header_linked_other PRIVATE ${library})
target_link_libraries(cpp_header_linked PRIVATE cpp_header_linked_other ${library})
add_test(NAME header.in_two_translation_units COMMAND cpp_header_linked)

# What the tests above compile is all of the header.
add_test(NAME header.everything_is_used
  COMMAND sh "${header_dir}/everything.sh" "${include_dir}/safetensors_lazy.hpp" "${header_dir}/everything.hpp")
