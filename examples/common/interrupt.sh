# Read by the test scripts.

# interrupt PROGRAM ARGUMENT...: runs it, sends SIGINT as soon as it is ready for that, and returns its exit status. Programs that use
# watch.c block SIGINT while they wait for it: bit 1 of SigBlk, which is hexadecimal.
interrupt() {
    "$@" &
    interrupted=$!
    # Before it is the program, it is a copy of this shell.
    until [ "$(readlink /proc/$interrupted/exe)" != "$(readlink /proc/$$/exe)" ] &&
        grep -q '^SigBlk:.*[2367abef]$' /proc/$interrupted/status 2>/dev/null; do
        kill -0 $interrupted 2>/dev/null || break
        sleep 0.05
    done
    kill -INT $interrupted || true
    wait $interrupted
}
