# Writes the licence texts of everything that the libraries contain beside this project's own code: the crates of the
# dependency tree, and Rust's standard library.
#
#   cmake -DOUTPUT=<file> [-DTRIPLE=<target triple>] -P licenses.cmake -- cargo <options> rustc <options>
#
# The words after -- are the command that built the library. Run again, it compiles nothing, and says where the sources of
# each crate lie. `cargo tree` says which of these crates end up in the library: not those for build scripts, procedural
# macros and tests.

cmake_minimum_required(VERSION 3.20)

set(command)
set(after_dashes OFF)
math(EXPR last "${CMAKE_ARGC} - 1")
foreach(i RANGE ${last})
  if(after_dashes)
    list(APPEND command "${CMAKE_ARGV${i}}")
  elseif(CMAKE_ARGV${i} STREQUAL "--")
    set(after_dashes ON)
  endif()
endforeach()
list(GET command 0 cargo)

# --- which crates, and where -------------------------------------------------------------------------------------------------

set(target)
if(TRIPLE)
  set(target --target ${TRIPLE})
endif()
execute_process(
  COMMAND "${cargo}" tree --locked --quiet --edges normal,no-proc-macro --prefix none --no-dedupe --format "{p}|{l}" ${target}
  OUTPUT_VARIABLE tree COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^\n]+" tree "${tree}")
list(REMOVE_DUPLICATES tree)
list(SORT tree)

list(FIND command rustc at)
math(EXPR at "${at} + 1")
list(INSERT command ${at} --message-format=json-render-diagnostics)
execute_process(COMMAND ${command} OUTPUT_VARIABLE messages COMMAND_ERROR_IS_FATAL ANY)

# --- their texts, each once --------------------------------------------------------------------------------------------------

set(crates "")
set(texts "")
set(count 0)
foreach(crate IN LISTS tree)
  if(NOT crate MATCHES "^([^ ]+) v([^ |]+)( \\(([^|]*)\\))?\\|(.*)$")
    message(FATAL_ERROR "cargo tree printed a line without a crate: ${crate}")
  endif()
  set(name "${CMAKE_MATCH_1}")
  set(version "${CMAKE_MATCH_2}")
  set(terms "${CMAKE_MATCH_5}")
  if(name STREQUAL "safetensors_lazy")
    continue()
  endif()
  string(REGEX REPLACE "([.+])" "\\\\\\1" version_pattern "${version}")
  # The identifier ends with name@version, or with the version where the address already has the name.
  if(NOT messages MATCHES
      "\"package_id\":\"[^\"]*[#/](${name}@|${name}#)${version_pattern}\",\"manifest_path\":\"([^\"]*)/Cargo.toml\"")
    message(FATAL_ERROR "cargo does not say where the sources of ${name} ${version} are")
  endif()
  set(directory "${CMAKE_MATCH_2}")
  file(GLOB files LIST_DIRECTORIES OFF
    "${directory}/[Ll][Ii][Cc][Ee][Nn][CcSs][Ee]*" "${directory}/[Cc][Oo][Pp][Yy][Ii][Nn][Gg]*"
    "${directory}/[Cc][Oo][Pp][Yy][Rr][Ii][Gg][Hh][Tt]*" "${directory}/[Nn][Oo][Tt][Ii][Cc][Ee]*"
    "${directory}/[Uu][Nn][Ll][Ii][Cc][Ee][Nn][CcSs][Ee]*" "${directory}/LICENSES/*")
  set(numbers "")
  foreach(file IN LISTS files)
    file(READ "${file}" text)
    string(STRIP "${text}" text)
    if(text STREQUAL "")
      continue()
    endif()
    string(SHA256 digest "${text}")
    if(NOT DEFINED number_of_${digest})
      math(EXPR count "${count} + 1")
      set(number_of_${digest} ${count})
      string(APPEND texts "\n\n======== [${count}] ========\n\n${text}\n")
    endif()
    string(APPEND numbers " [${number_of_${digest}}]")
  endforeach()
  if(numbers STREQUAL "")
    message(FATAL_ERROR "${name} ${version} (${terms}) has no licence text in ${directory}")
  endif()
  string(APPEND crates "  ${name} ${version}, ${terms}:${numbers}\n")
endforeach()
if(crates STREQUAL "")
  message(FATAL_ERROR "cargo tree printed no crates")
endif()

# --- Rust's standard library: its notices come with the compiler ----------------------------------------------------------------

set(rustc "$ENV{RUSTC}")
if(NOT rustc)
  get_filename_component(bin "${cargo}" DIRECTORY)
  find_program(rustc_program rustc HINTS "${bin}" REQUIRED)
  set(rustc "${rustc_program}")
endif()
execute_process(COMMAND "${rustc}" --version OUTPUT_VARIABLE rustc_version OUTPUT_STRIP_TRAILING_WHITESPACE
  COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${rustc}" --print sysroot OUTPUT_VARIABLE sysroot OUTPUT_STRIP_TRAILING_WHITESPACE
  COMMAND_ERROR_IS_FATAL ANY)
file(GLOB notices
  "${sysroot}/share/doc/rust/COPYRIGHT-library.html" # rust-lang.org
  "${sysroot}/share/doc/libstd-rust*/copyright")     # Debian
if(notices)
  list(GET notices 0 file)
  file(READ "${file}" notices)
  if(file MATCHES "html$")
    string(REGEX REPLACE "<[^>]*>" "" notices "${notices}")
    foreach(entity "&lt\;=<" "&gt\;=>" "&quot\;=\"" "&#34\;=\"" "&#39\;='" "&#x27\;='" "&#x2F\;=/" "&nbsp\;= " "&amp\;=&")
      string(REGEX MATCH "^([^=]*)=(.*)$" entity "${entity}")
      string(REPLACE "${CMAKE_MATCH_1}" "${CMAKE_MATCH_2}" notices "${notices}")
    endforeach()
    string(REGEX REPLACE "[ \t]+\n" "\n" notices "${notices}")
    string(REGEX REPLACE "\n\n\n+" "\n\n" notices "${notices}")
  endif()
else()
  file(READ "${CMAKE_CURRENT_LIST_DIR}/rust-license.txt" notices)
endif()
string(STRIP "${notices}" notices)

file(WRITE "${OUTPUT}" "THIRD-PARTY LICENSES OF SAFETENSORS_LAZY

libsafetensors_lazy.so and libsafetensors_lazy.a contain these crates. The numbers are those of the texts below.

${crates}
They also contain Rust's standard library, of ${rustc_version}, MIT OR Apache-2.0: the last text.
${texts}

======== Rust's standard library ========

${notices}
")
