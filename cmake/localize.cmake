# Turns the archive that cargo makes into one whose only global symbols are st_*: links what they need into one object, makes
# everything else in it local, and archives that.

function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

# Some versions of nm complain of the bitcode in Rust's own libraries and go on, so their exit status says nothing.
execute_process(COMMAND ${NM} --defined-only --extern-only --format=posix "${ARCHIVE}"
  OUTPUT_VARIABLE symbols ERROR_QUIET)
string(REGEX MATCHALL "(^|\n)st_[a-z0-9_]+ T " exported "${symbols}")
if(NOT exported)
  message(FATAL_ERROR "${ARCHIVE} defines no st_* function")
endif()
list(TRANSFORM exported REPLACE "^\n?(st_[a-z0-9_]+) T $" "-Wl,--undefined=\\1")

set(object "${OUTPUT}.o")
run(${CC} -r -nostdlib -Wl,--gc-sections ${exported} -o "${object}" "${ARCHIVE}")
# Some versions of ar stumble over that bitcode too.
run(${OBJCOPY} --wildcard "--keep-global-symbol=st_*" --strip-debug --remove-section=.llvmbc --remove-section=.llvmcmd
  "${object}")
file(REMOVE "${OUTPUT}")
run(${AR} crs "${OUTPUT}" "${object}")
file(REMOVE "${object}")
