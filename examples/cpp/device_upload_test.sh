#!/bin/sh
# Runs one case: device_upload_test.sh CASE MODEL, with the programs UPLOAD and CONVERT, and the folder FAKES of runtimes that are
# none, in a folder of its own below the current one.
set -eu
. "$(dirname "$0")/../common/interrupt.sh"
case=$1 model=$2
rm -rf "device_upload_test/$case"
mkdir -p "device_upload_test/$case"
cd "device_upload_test/$case"
LD_LIBRARY_PATH=$FAKES${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH

# Runs device_upload, which must end with this status and say this, on stdout or stderr; and break no rule of the fake devices.
expect() {
    want=$1 text=$2 status=0
    shift 2
    "$UPLOAD" "$@" >said 2>&1 || status=$?
    cat said
    [ $status -eq "$want" ] || { echo "ended with $status, not $want"; exit 1; }
    grep -qF -- "$text" said || { echo "did not say $text"; exit 1; }
    ! grep -q "fake device:" said
}

# What a fake device that fails in some way makes of it, given the device, the way and the message.
fails() {
    FAKE_FAILS=$2 expect 1 "$3" --device "$1" --staging 1MiB --piece 64KiB "$model"
}

same="the device has what the files have"

case $case in
host)
    expect 0 "104 of 104 tensors from 1 file(s), to host memory" --device host --check "$model"
    grep -qF "$same" said
    for how in "--engine buffered" "--engine direct" "--workers 1" "--staging 64KiB --piece 4096" "--staging 1MiB --piece 16MiB"; do
        # shellcheck disable=SC2086 # words
        expect 0 "$same" --device host $how --check "$model"
    done
    ;;
sharded_model)
    for device in host cuda acl; do
        expect 0 "$same" --device $device --check "$SHARDED"
    done
    ;;
cuda)
    expect 0 "104 of 104 tensors from 1 file(s), to CUDA device 0 at 0000:01:00.0" --device cuda --check "$model"
    grep -qF "$same" said
    grep -qF " 0.00 MB moved" said
    FAKE_DEVICES=3 expect 0 "to CUDA device 2" --device cuda:2 "$model"
    ;;
acl)
    expect 0 "104 of 104 tensors from 1 file(s), to ACL device 0, FakeAscend" --device acl --check "$model"
    grep -qF "$same" said
    FAKE_DEVICES=3 expect 0 "to ACL device 2" --device acl:2 "$model"
    ;;
acl_alignment)
    # Tensors that lie well go as they are, all others are moved: in whole, and in pieces that end where those on the device cannot.
    "$CONVERT" --no-sync --align 64 "$model" aligned
    expect 0 "$same" --device acl --check aligned
    grep -qF " 0.00 MB moved" said
    header=$(od -An -tu8 -N 8 aligned)
    for shift in 8 24 56; do
        # The same with a longer header.
        longer=$((header + shift))
        {
            printf "\\$(printf %o $((longer % 256)))\\$(printf %o $((longer / 256 % 256)))\\$(printf %o $((longer / 65536)))"
            printf "\\0\\0\\0\\0\\0"
            tail -c +9 aligned | head -c "$header"
            printf "%${shift}s" ""
            tail -c +$((header + 9)) aligned
        } >shifted
        for how in "" "--staging 256KiB --piece 4096" "--staging 1MiB --piece 20000"; do
            # shellcheck disable=SC2086 # words
            FAKE_DELAY_US=50 expect 0 "$same" --device acl $how --check shifted
            grep -q " 90.8[0-9] MB moved" said
        done
        expect 0 "$same" --device cuda --check shifted
        grep -qF " 0.00 MB moved" said
    done
    ;;
several_copies_at_once)
    for device in cuda acl; do
        FAKE_DELAY_US=2000 expect 0 "$same" --device $device --staging 4MiB --piece 256KiB --check "$model"
        [ "$(sed -n 's/.* at most \([0-9]*\) at once.*/\1/p' said)" -ge 2 ]
    done
    ;;
automatic)
    expect 0 "to CUDA device 0" "$model"
    FAKE_FAILS=cuda_init@1 expect 0 "to ACL device 0" --device auto "$model"
    FAKE_DEVICES=0 expect 0 "to host memory" "$model"
    ;;
no_runtime)
    expect 1 "CUDA cannot be used, its runtime was not found: ./missing.so: " --device cuda --runtime ./missing.so "$model"
    expect 1 "ACL cannot be used, its runtime was not found: ./missing.so: " --device acl --runtime ./missing.so "$model"
    expect 1 "CUDA cannot be used: libc.so.6 has no cuda" --device cuda --runtime libc.so.6 "$model"
    expect 1 "ACL cannot be used: " --device acl --runtime "$FAKES/libcudart.so" "$model"
    expect 0 "to CUDA device 0" --device cuda --runtime "$FAKES/libcudart.so" "$model"
    ;;
no_device)
    export FAKE_DEVICES=0
    expect 1 "CUDA cannot be used, cudaGetDeviceCount: no CUDA-capable device is detected (100)" --device cuda "$model"
    expect 1 "ACL has 0 device(s), and not number 0" --device acl "$model"
    export FAKE_DEVICES=1
    expect 1 "CUDA has 1 device(s), and not number 1" --device cuda:1 "$model"
    expect 1 "ACL has 1 device(s), and not number 7" --device acl:7 "$model"
    fails acl acl_init@1 "ACL cannot be used, aclInit: error 107000, fake error"
    ;;
no_memory)
    fails cuda memory@1 "cudaMalloc of "
    fails cuda pinned@1 "cudaHostAlloc of 1048576 bytes: out of memory (2)"
    fails acl memory@1 "aclrtMalloc of "
    fails acl pinned@1 "aclrtMallocHost of 1048576 bytes: error 207001, fake error"
    ;;
failing_copies)
    for n in 1 2 100; do
        fails cuda copy@$n "cudaMemcpyAsync: fake error (700)"
        fails cuda copied@$n "a copy to the device: fake error (700)"
        fails acl copy@$n "aclrtMemcpyAsync: error 507000, fake error"
        fails acl copied@$n "a copy to the device: error 507000, fake error"
        fails cuda event@$n cudaEventCreate
        fails acl event@$n aclrtCreateEvent
    done
    fails cuda stream@1 cudaStreamCreate
    fails acl stream@1 aclrtCreateStream
    ;;
damaged)
    # One tensor of many is not what it was: all the others arrive, and are right.
    "$CONVERT" --no-sync --blake3 "$model" m
    expect 0 "104 of 104" --device host --verify --check m
    printf U | dd of=m bs=1 seek=1000000 conv=notrunc 2>dd_said
    for device in host cuda acl; do
        for how in "" "--staging 1MiB --piece 64KiB"; do
            # shellcheck disable=SC2086 # words
            expect 1 "103 of 104" --device $device $how --verify --check m
            grep -qF "$same" said
            [ "$(grep -c ST_ERR_CHECKSUM_MISMATCH said)" -eq 1 ]
        done
    done
    ;;
bad_input)
    expect 2 usage
    expect 2 usage "$model" "$model"
    for option in "--device" "--device tpu" "--device cuda:" "--device cuda:x" "--device cuda:-1" "--device host:0" \
        "--device host --runtime x" "--runtime" "--staging 0" "--piece x" "--what"; do
        # shellcheck disable=SC2086 # words
        expect 2 usage "$model" $option
    done
    expect 1 "No such file" --device host missing
    expect 1 "the file is a text" --device host "$0"
    expect 1 ST_ERR_INVALID_ARGUMENT --device host --staging 1KB "$model"
    expect 1 ST_ERR_INVALID_ARGUMENT --device cuda --piece 100 "$model"
    ;;
interrupted)
    # A device that is slow.
    export FAKE_DELAY_US=20000
    UPLOAD_ALONE=$UPLOAD UPLOAD=interrupt
    for device in cuda acl; do
        expect 1 ST_ERR_CANCELLED "$UPLOAD_ALONE" --device $device --staging 1MiB --piece 64KiB "$model"
    done
    ;;
*)
    echo "there is no case $case"
    exit 1
    ;;
esac
cd ..
rm -rf "$case" # the files are large
