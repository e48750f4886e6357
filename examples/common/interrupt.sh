# Read by the test scripts.

# interrupt PROGRAM ARGUMENT...: runs it, sends SIGINT as soon as it is ready for that, and returns its exit status. Programs that use
# watch.c block SIGINT, SIGTERM and SIGUSR1 while they wait for them: bits 1, 14 and 9 of SigBlk, which is hexadecimal. Just these: while
# a thread is started all signals are blocked for a moment, and a SIGINT of that moment is lost, since a shell has background programs
# ignore it.
interrupt() {
    "$@" &
    interrupted=$!
    # Before it is the program, it is a copy of this shell.
    until [ "$(readlink /proc/$interrupted/exe)" != "$(readlink /proc/$$/exe)" ] &&
        grep -q '^SigBlk:[[:space:]]*0*4202$' /proc/$interrupted/status 2>/dev/null; do
        kill -0 $interrupted 2>/dev/null || break
        sleep 0.05
    done
    kill -INT $interrupted || true
    wait $interrupted
}
