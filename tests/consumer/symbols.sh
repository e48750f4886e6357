#!/bin/sh
# What the libraries export is what the header declares, and they need nothing but the system.
set -eu
prefix=$1 library_dir=$1/$2 constants=$3 compiler=$4 nm=$5 readelf=$6
header=$prefix/include/safetensors_lazy.h
shared=$library_dir/libsafetensors_lazy.so
static=$library_dir/libsafetensors_lazy.a

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failed=0
fail() { echo "$*" >&2; failed=1; }
same() { diff "$folder/$1" "$folder/$2" >&2 || fail "$3"; }

# Comments are gone after the preprocessor.
"$compiler" -E -P "$header" | grep -o 'st_[a-z0-9_]* *(' | tr -d ' (' | sort -u >"$folder/declared"
"$nm" -D --defined-only --format=posix "$shared" | awk '{ print $1 }' | sort -u >"$folder/exported_versioned"
grep -v '^ST_1\(@@ST_1\)*$' "$folder/exported_versioned" | sed 's/@@ST_1$//' >"$folder/exported"
"$nm" --defined-only --extern-only --format=posix "$static" 2>/dev/null | awk 'NF > 2 { print $1 }' | sort -u >"$folder/archived"
test -s "$folder/declared" || fail "no function was found in the header"
same declared exported "< declared in the header, > exported by the shared library"
same declared archived "< declared in the header, > global in the static library"

"$readelf" --wide --dynamic "$shared" >"$folder/dynamic"
abi=$("$nm" -D --with-symbol-versions "$shared" | grep -o 'st_open@@ST_[0-9]*' | grep -o '[0-9]*$')
grep -q "SONAME.*\[libsafetensors_lazy\.so\.$abi\]" "$folder/dynamic" || fail "the soname is not libsafetensors_lazy.so.$abi"
test "$(basename "$(readlink -f "$library_dir/libsafetensors_lazy.so.$abi")")" = "$(basename "$(readlink -f "$shared")")" ||
    fail "libsafetensors_lazy.so.$abi is not the library"
sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p' "$folder/dynamic" |
    grep -v '^\(libc\|libgcc_s\|libm\|libpthread\|libdl\|librt\|libutil\|ld-linux.*\)\.so\.[0-9]$' >"$folder/needed" &&
    fail "needs more than the system: $(cat "$folder/needed")"
grep -q 'RPATH\|RUNPATH\|TEXTREL' "$folder/dynamic" && fail "has a RPATH, a RUNPATH or text relocations"
"$readelf" --wide --segments "$shared" | grep -q 'GNU_STACK.*RWE' && fail "has an executable stack"

# constants.h, which the tests walk, has every status and dtype of the header.
sed -n 's/^#define \(ST_\(OK\|DONE\|TIMEOUT\|ERR_[A-Z0-9_]*\|DTYPE_[A-Z0-9_]*\)\) \([0-9]*\)$/\1 \3/p' "$header" | sort >"$folder/defined"
sed -n 's/^ *X(\(ST_[A-Z0-9_]*\), \([0-9]*\).*/\1 \2/p' "$constants" | sort >"$folder/listed"
test -s "$folder/defined" || fail "no constant was found in the header"
same defined listed "< defined in the header, > listed in constants.h"
exit $failed
