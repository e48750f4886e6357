# Turns the archive that cargo makes into one whose only global symbols are st_*: links what they need into one object, makes
# everything else in it local, and archives that.

function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

execute_process(COMMAND ${NM} --defined-only --extern-only --format=posix "${ARCHIVE}"
  OUTPUT_VARIABLE symbols ERROR_QUIET COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "(^|\n)st_[a-z0-9_]+ T " exported "${symbols}")
if(NOT exported)
  message(FATAL_ERROR "${ARCHIVE} defines no st_* function")
endif()
list(TRANSFORM exported REPLACE "^\n?(st_[a-z0-9_]+) T $" "-Wl,--undefined=\\1")

set(object "${OUTPUT}.o")
run(${CC} -r -nostdlib -Wl,--gc-sections ${exported} -o "${object}" "${ARCHIVE}")
# Rust's own libraries carry LLVM bitcode besides their machine code, which some versions of ar stumble over.
run(${OBJCOPY} --wildcard "--keep-global-symbol=st_*" --strip-debug --remove-section=.llvmbc --remove-section=.llvmcmd
  "${object}")
file(REMOVE "${OUTPUT}")
run(${AR} crs "${OUTPUT}" "${object}")
file(REMOVE "${object}")
