# Turns the archive that cargo makes into one object with only st_* global: links the code that they need into the object, and
# makes every other symbol in it local.

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

run(${CC} -r -nostdlib -Wl,--gc-sections ${exported} -o "${OUTPUT}" "${ARCHIVE}")
# Some versions of ar stumble over the bitcode too.
run(${OBJCOPY} --wildcard "--keep-global-symbol=st_*" --strip-debug --remove-section=.llvmbc --remove-section=.llvmcmd
  "${OUTPUT}")
