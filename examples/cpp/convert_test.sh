#!/bin/sh
# Runs one case: convert_test.sh CASE MODEL, with the programs CONVERT, VERIFY and INSPECT, in a folder of its own below the current one.
set -eu
. "$(dirname "$0")/../common/interrupt.sh"
case=$1 model=$2 here=$(cd "$(dirname "$0")" && pwd)
rm -rf "convert_test/$case"
mkdir -p "convert_test/$case"
cd "convert_test/$case"
export TMPDIR=$PWD

convert() { "$CONVERT" --no-sync "$@"; }

# Runs convert, which must fail with this status and say this; and leave nothing behind.
fails() {
    want=$1 text=$2 status=0 before=$(ls -A)
    shift 2
    said=$("$CONVERT" "$@" 2>&1) || status=$?
    echo "$said"
    [ $status -eq "$want" ] || { echo "ended with $status, not $want"; exit 1; }
    case $said in *"$text"*) ;; *) echo "did not say $text"; exit 1 ;; esac
    [ "$(ls -A)" = "$before" ] || { ls -A; exit 1; }
}

# Compares tensors by a reader that shares no code with the library.
same_tensors() {
    if [ -n "$PYTHON" ]; then
        "$PYTHON" "$here/same_tensors.py" "$model" "$@"
    fi
}

# Writes a header, of less than 128 bytes, with its length before it.
print_header() {
    printf "\\$(printf %o ${#1})\\0\\0\\0\\0\\0\\0\\0%s" "$1"
}

case $case in
round_trip)
    convert "$model" one.safetensors
    same_tensors one.safetensors
    convert --shard-size 20MB --verify one.safetensors several.safetensors
    [ "$(ls several* | wc -l)" -eq 5 ] # with the index
    [ -e several-00004-of-00004.safetensors ]
    same_tensors several-*
    convert several.safetensors.index.json again.safetensors
    cmp one.safetensors again.safetensors
    convert --insertion-order --shard-size 5MiB --align 64 --blake3 several.safetensors.index.json others
    same_tensors others-*
    convert others.safetensors.index.json again.safetensors
    cmp one.safetensors again.safetensors
    ;;
sharded_model)
    convert --verify "$SHARDED" one.safetensors
    same_tensors one.safetensors
    convert "$model" two.safetensors
    ;;
in_place)
    convert "$model" m.safetensors
    cp m.safetensors one.safetensors
    convert --crc --verify m.safetensors m.safetensors
    "$VERIFY" m.safetensors
    convert --shard-size 20MB --blake3 --verify m.safetensors m.safetensors
    [ ! -e m.safetensors ] # the shards are in its place
    convert --shard-size 40MB --sha256 --verify m.safetensors.index.json m.safetensors.index.json
    [ "$(ls m* | wc -l)" -eq 4 ] # with the index; the four shards of before are gone
    [ -e m-00003-of-00003.safetensors ]
    "$VERIFY" m.safetensors.index.json
    convert m.safetensors.index.json m.safetensors
    [ "$(echo m*)" = "m.safetensors m.safetensors.index.json" ] # which says that one.safetensors is not meant
    cmp m.safetensors one.safetensors
    convert . again.safetensors
    cmp again.safetensors one.safetensors
    ;;
alignment)
    convert --align 4096 --insertion-order "$model" aligned
    start=$("$INSPECT" aligned | sed -n '1s/.* at \([0-9]*\) of file 0/\1/p')
    [ $((start % 4096)) -eq 0 ]
    same_tensors aligned
    ;;
misaligned)
    # A tensor that cannot be pointed to where it lies, and one that can.
    print_header '{"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}' >odd
    printf X12345678 >>odd
    convert --crc --blake3 --verify odd even
    "$VERIFY" even
    tail -c 9 even >bytes
    printf 12345678X | cmp - bytes
    ;;
stale_checksums)
    convert --crc --sha256 --blake3 "$model" summed
    "$INSPECT" summed | grep -q "metadata crc_num"
    convert summed plain
    convert "$model" one
    cmp one plain
    # Sums of shards say nothing about the whole.
    convert --crc --shard-size 20MB summed several
    convert --crc several.safetensors.index.json merged
    "$VERIFY" merged
    "$INSPECT" merged | grep "metadata crc_num" >merged_sum
    "$INSPECT" summed | grep "metadata crc_num" | cmp - merged_sum
    ;;
damaged)
    convert --blake3 "$model" m
    printf U | dd of=m bs=1 seek=1000000 conv=notrunc 2>dd_said
    cp "$model" kept
    fails 1 ST_ERR_CHECKSUM_MISMATCH --verify m kept
    fails 1 ST_ERR_CHECKSUM_MISMATCH --verify m m
    cmp "$model" kept
    ;;
bad_input)
    fails 2 usage
    fails 2 usage "$model"
    fails 2 usage "$model" x y
    fails 2 usage --what "$model" x
    for size in 0 5XB GB -1 99999999999999999999 99999999999GiB; do
        fails 2 usage --shard-size $size "$model" x
    done
    fails 1 ST_ERR_INVALID_ARGUMENT --align 12 "$model" x
    fails 1 "No such file" missing x
    fails 1 "the file is a text" "$here/convert.cpp" x
    head -c 1000000 "$model" >cut
    fails 1 ST_ERR_TRUNCATED cut x
    ;;
bad_target)
    fails 1 "No such file" "$model" missing/x
    fails 1 ST_ERR_NOT_A_FILE "$model" /dev/full
    fails 1 ST_ERR_NOT_A_FILE "$model" "$PWD"
    : >file
    fails 1 "Not a directory" "$model" file/x
    if [ "$(id -u)" -ne 0 ]; then
        mkdir locked
        chmod 555 locked
        fails 1 "Permission denied" "$model" locked/x
    fi
    ;;
no_room)
    # A limit on files stands for a disk that is full.
    echo old >kept
    trap '' XFSZ
    ulimit -f 2000
    fails 1 ST_ERR_IO --no-sync "$model" kept
    fails 1 ST_ERR_IO --no-sync --shard-size 20MB "$model" kept
    [ "$(cat kept)" = old ]
    ;;
replaces)
    echo old >m
    chmod 640 m
    convert "$model" m
    same_tensors m
    [ "$(stat -c %a m)" = 640 ]
    echo old >target
    ln -sf target link
    convert "$model" link
    same_tensors link
    [ "$(cat target)" = old ]
    ;;
interrupted)
    print_header '{"zeros":{"dtype":"U8","shape":[2147483648],"data_offsets":[0,2147483648]}}' >large
    truncate -s +2G large
    echo old >kept
    CONVERT_ALONE=$CONVERT CONVERT=interrupt
    fails 1 ST_ERR_CANCELLED "$CONVERT_ALONE" --sha256 large kept
    [ "$(cat kept)" = old ]
    ;;
*)
    echo "there is no case $case"
    exit 1
    ;;
esac
cd ..
rm -rf "$case" # the files are large
