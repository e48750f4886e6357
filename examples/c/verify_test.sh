#!/bin/sh
# Runs one case: verify_test.sh CASE MODEL, with the programs VERIFY and CONVERT, in a folder of its own below the current one.
set -eu
. "$(dirname "$0")/../common/interrupt.sh"
case=$1 model=$2
rm -rf "verify_test/$case"
mkdir -p "verify_test/$case"
cd "verify_test/$case"

# Runs verify, which must end with this status and say this, on stdout or stderr.
expect() {
    want=$1 text=$2 status=0
    shift 2
    "$VERIFY" "$@" >said 2>&1 || status=$?
    cat said
    [ $status -eq "$want" ] || { echo "ended with $status, not $want"; exit 1; }
    grep -qF -- "$text" said || { echo "did not say $text"; exit 1; }
}

# Changes the byte in the middle of a file, if it is not 0x55 already.
damage() {
    middle=$(($(wc -c <"$1") / 2))
    [ "$(od -An -tx1 -j $middle -N 1 "$1")" != " 55" ]
    printf U | dd of="$1" bs=1 seek=$middle conv=notrunc 2>dd_said
}

# Writes a header, of less than 128 bytes, with its length before it.
print_header() {
    printf "\\$(printf %o ${#1})\\0\\0\\0\\0\\0\\0\\0%s" "$1"
}

case $case in
good)
    "$CONVERT" --no-sync --crc --sha256 --blake3 "$model" all
    expect 0 "CRC, SHA-256, BLAKE3" all
    expect 0 "SHA-256 of files" --sha256 "$(sha256sum "$model" | cut -d' ' -f1)" "$model"
    for kind in crc sha256 blake3; do
        "$CONVERT" --no-sync --$kind "$model" $kind
        expect 0 good $kind
    done
    ;;
shards)
    "$CONVERT" --no-sync --blake3 --shard-size 30MB "$model" m
    expect 0 "in 3 file(s)" m.safetensors.index.json
    expect 0 good .
    expect 0 "BLAKE3, SHA-256 of files" --sha256 - --sha256 "$(sha256sum m-00002-of-00003.safetensors | cut -d' ' -f1)" .
    damage m-00003-of-00003.safetensors
    expect 1 "1 of 3 file(s), 1 of " .
    grep -q m-00003-of-00003 said
    ;;
damaged)
    for kind in crc sha256 blake3; do
        "$CONVERT" --no-sync --$kind "$model" $kind
        damage $kind
        expect 1 "damaged, by" $kind
    done
    grep -q "1 of 1 file(s), 1 of .* tensors" said # BLAKE3 knows which
    expect 1 "damaged, by SHA-256 of files" --sha256 "$(echo x | sha256sum | cut -d' ' -f1)" "$model"
    ;;
nothing_to_verify)
    expect 3 ST_ERR_CHECKSUM_MISSING "$model"
    expect 3 ST_ERR_CHECKSUM_MISSING --sha256 - "$model"
    ;;
bad_input)
    expect 2 usage
    expect 2 usage "$model" "$model"
    expect 2 usage --what "$model"
    expect 2 usage --sha256
    expect 2 "No such file" missing
    expect 2 "the file is a text" "$0"
    expect 2 ST_ERR_NOT_A_FILE /dev/full
    expect 2 ST_ERR_FOLDER_EMPTY /dev
    expect 2 ST_ERR_INVALID_ARGUMENT --sha256 1234 "$model"
    head -c 1000000 "$model" >cut
    expect 2 ST_ERR_TRUNCATED cut
    ;;
interrupted)
    # 8 GiB of zeros that lie nowhere: enough to be busy with.
    print_header '{"zeros":{"dtype":"U8","shape":[8589934592],"data_offsets":[0,8589934592]}}' >large
    truncate -s +8G large
    VERIFY_ALONE=$VERIFY VERIFY=interrupt
    expect 2 ST_ERR_CANCELLED "$VERIFY_ALONE" --sha256 "$(echo x | sha256sum | cut -d' ' -f1)" large
    rm large
    ;;
*)
    echo "there is no case $case"
    exit 1
    ;;
esac
cd ..
rm -rf "$case" # the files are large
