#!/bin/sh
# Runs one case: load_model_test.sh CASE MODEL, with the programs LOAD_MODEL and CONVERT, in a folder of its own below the current one.
set -eu
. "$(dirname "$0")/../common/interrupt.sh"
case=$1 model=$2
rm -rf "load_model_test/$case"
mkdir -p "load_model_test/$case"
cd "load_model_test/$case"

# Runs load_model, which must end with this status and say this, on stdout or stderr.
expect() {
    want=$1 text=$2 status=0
    shift 2
    "$LOAD_MODEL" "$@" >said 2>&1 || status=$?
    cat said
    [ $status -eq "$want" ] || { echo "ended with $status, not $want"; exit 1; }
    grep -qF -- "$text" said || { echo "did not say $text"; exit 1; }
}

# Writes a header, of less than 128 bytes, with its length before it.
print_header() {
    printf "\\$(printf %o ${#1})\\0\\0\\0\\0\\0\\0\\0%s" "$1"
}

# Makes "large": 1 TiB of zeros that lie nowhere, which is enough to be busy with.
make_large() {
    print_header '{"zeros":{"dtype":"U8","shape":[1099511627776],"data_offsets":[0,1099511627776]}}' >large
    truncate -s +1T large
}

case $case in
everything)
    expect 0 "104 of 104 tensors from 1 file(s)" "$model"
    grep -q "^90.86 MB in .* GB/s, by .*, [0-9]* thread(s)$" said
    ;;
sharded_model)
    expect 0 "104 of 104 tensors from 4 file(s)" "$SHARDED"
    ;;
engines)
    # Each with what may take its place, where the system or the file refuses it, or beside it.
    for engines in "auto uring\|direct\|buffered" "buffered buffered" "direct direct\|buffered" "uring uring\|direct\|buffered"; do
        names="\(${engines#* }\)"
        expect 0 "104 of 104" --engine "${engines%% *}" --workers 2 --depth 4 --block 128KiB "$model"
        grep -q " GB/s, by $names\(+$names\)*, [12] thread(s)$" said
    done
    expect 0 "by buffered, 1 thread(s)" --engine buffered --workers 1 "$model"
    ;;
staged)
    expect 0 "104 of 104" --staged 1MiB "$model"
    peak=$(sed -n 's/.*peak memory \([0-9]*\)\..* MB$/\1/p' said)
    [ "$peak" -lt 60 ] # of 90 MB
    ;;
empty)
    print_header '{}' >none
    expect 0 "0 of 0 tensors" none
    expect 0 "by none" none
    ;;
damaged)
    # One tensor of many is not what it was: all the others arrive.
    "$CONVERT" --no-sync --blake3 "$model" m
    expect 0 "104 of 104" --verify m
    printf U | dd of=m bs=1 seek=1000000 conv=notrunc 2>dd_said
    for how in "" "--staged 1MiB"; do
        # shellcheck disable=SC2086 # words
        expect 1 "103 of 104" --verify $how m
        grep -q ST_ERR_CHECKSUM_MISMATCH said
    done
    expect 0 "104 of 104" m
    ;;
bad_input)
    expect 2 usage
    expect 2 usage "$model" "$model"
    expect 2 usage --what "$model"
    for option in "--engine turbo" "--engine" "--workers 0" "--workers x" "--workers -1" "--depth 1.5" "--block x" "--staged 0"; do
        # shellcheck disable=SC2086 # words
        expect 2 usage "$model" $option
    done
    expect 1 ST_ERR_UNSUPPORTED --engine memory "$model"
    expect 1 ST_ERR_INVALID_ARGUMENT --block 5000 "$model"
    expect 1 ST_ERR_INVALID_ARGUMENT --staged 1KB "$model"
    expect 1 "No such file" missing
    expect 1 "the file is a text" "$0"
    expect 1 ST_ERR_NOT_A_FILE /dev/full
    head -c 1000000 "$model" >cut
    expect 1 ST_ERR_TRUNCATED cut
    ;;
terminal)
    # There it shows how far it is.
    command -v script || { echo "there is no script(1), which makes terminals"; exit 77; }
    script -qec true tried </dev/null >tried_said 2>&1 || { echo "no terminal can be made here: $(cat tried_said)"; exit 77; }
    make_large
    script -qefc "echo \$\$ >pid; exec '$LOAD_MODEL' --engine direct --staged 16MiB large" shown </dev/null >said &
    # The first that it draws has no engine yet, or no speed.
    until grep -q "loading \[[#.][#.]*\] *[0-9]*%, [0-9.]* GB/s by \(direct\|buffered\)" said; do
        kill -0 $! || { cat said; exit 1; }
        sleep 0.05
    done
    kill -INT "$(cat pid)"
    status=0
    wait $! || status=$?
    cat said
    [ $status -eq 1 ]
    grep -q "ST_ERR_CANCELLED" said
    rm large
    ;;
interrupted)
    make_large
    LOAD_MODEL_ALONE=$LOAD_MODEL LOAD_MODEL=interrupt
    expect 1 ST_ERR_CANCELLED "$LOAD_MODEL_ALONE" --engine direct --staged 16MiB large
    rm large
    ;;
*)
    echo "there is no case $case"
    exit 1
    ;;
esac
cd ..
rm -rf "$case" # the files are large
