#!/bin/sh
# The programs that the README shows, on checkpoints as it names them.
#
#   readme_test.sh <case> <model>
#
# READMES: where the programs are; CONVERT: examples/cpp/convert.cpp.
set -u
case=$1
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory" || exit 1
fail() { echo "$*"; cat said; exit 1; }

# checkpoint FILE NAME...: F32 tensors of one element.
checkpoint() {
    file=$1
    shift
    header=
    end=0
    for name in "$@"; do
        header="$header,\"$name\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[$end,$((end + 4))]}"
        end=$((end + 4))
    done
    header="{${header#,}}"
    while [ $((${#header} % 8)) -ne 0 ]; do header="$header "; done
    # shellcheck disable=SC2059 # octal
    { printf "\\$(printf %o $((${#header} % 256)))\\$(printf %o $((${#header} / 256)))\0\0\0\0\0\0%s" "$header"; head -c $end /dev/zero; } >"$file"
}

# succeeds PROGRAM [MESSAGE]
succeeds() {
    "$READMES/$1" >said 2>&1 || fail "$1 ended with $?"
    test $# -eq 1 || grep -q "$2" said || fail "$1 does not say: $2"
}

# It must say why, on stderr.
fails() {
    if "$READMES/$1" >out 2>said; then fail "$1 succeeded"; fi
    grep -q "$2" said || fail "$1 does not say: $2"
}

case $case in
first_in_c)
    fails readme_c "model.safetensors"
    checkpoint model.safetensors other
    fails readme_c "lm_head.weight"
    checkpoint model.safetensors lm_head.weight
    succeeds readme_c "4 bytes at "
    ;;
first_in_cpp)
    ulimit -c 0 # an exception that nobody catches
    fails readme_cpp "llama-70b"
    mkdir llama-70b
    checkpoint llama-70b/model.safetensors model.layers.3.weight
    fails readme_cpp "model.norm.weight"
    checkpoint llama-70b/model.safetensors model.layers.3.weight model.norm.weight
    succeeds readme_cpp
    ;;
loads)
    ulimit -c 0
    fails readme_loads_cpp "model.safetensors"
    "$READMES/readme_loads_c" >said && fail "readme_loads_c succeeded without a file"
    grep -q "model.safetensors" said || fail "readme_loads_c does not name the file"
    checkpoint model.safetensors model.layers.0
    succeeds readme_loads_c "4 bytes"
    succeeds readme_loads_cpp
    ;;
writes)
    ulimit -c 0
    succeeds readme_writes_c
    fails readme_writes_cpp "model.safetensors"
    checkpoint plain.safetensors weight
    "$CONVERT" --blake3 plain.safetensors model.safetensors >said 2>&1 || fail "convert ended with $?"
    succeeds readme_writes_cpp
    test -e copy.safetensors || fail "there is no copy.safetensors"
    ;;
*)
    echo "there is no case $case"
    exit 1
    ;;
esac
