#!/bin/sh
# How a program answers --help and a command line that is wrong.
#
#   arguments_test.sh <program> [argument]...
set -u
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
fail() { echo "$*"; echo "stdout:"; cat "$directory/out"; echo "stderr:"; cat "$directory/err"; exit 1; }

# run STATUS PROGRAM...: runs it, and compares its exit status.
run() {
    status=$1
    shift
    "$@" >"$directory/out" 2>"$directory/err"
    ended=$?
    test $ended -eq "$status" || fail "$*: ended with $ended, not $status"
}

run 0 "$@" --help
grep -qi '^usage: ' "$directory/out" || fail "--help does not print the usage on stdout"

run 2 "$@" --what model
grep -q -e --what "$directory/err" || fail "stderr does not name the wrong option"
test ! -s "$directory/out" || fail "a wrong option is told on stdout"

run 2 "$@" model second third fourth fifth sixth
grep -q 'second\|third\|fourth\|fifth\|sixth' "$directory/err" || fail "stderr does not name a wrong argument"

run 2 "$@"
grep -qi 'usage: ' "$directory/err" || fail "stderr does not have the usage where arguments are missing"
