#!/bin/sh
# The licence texts that are installed.
#
#   licenses.sh <case> <source tree> <THIRD-PARTY-LICENSES.txt> <cargo> <cmake>
set -eu
case=$1 source=$2 licenses=$3 cargo=$4 cmake=$5

directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
fail() { echo "$*" >&2; exit 1; }

case $case in
complete)
    # Each crate is named, with the numbers of texts that are there; at least one of them has the length of a licence.
    (cd "$source" && "$cargo" tree --locked --edges normal,no-proc-macro --prefix none --no-dedupe --format '{p}') |
        awk '$1 != "safetensors_lazy" { print $1, substr($2, 2) }' | sort -u >"$directory/crates"
    test "$(wc -l <"$directory/crates")" -gt 10 || fail "cargo tree does not tell the crates"
    while read -r name version; do
        numbers=$(sed -n "s/^  $name $version, [^:]*://p" "$licenses")
        test -n "$numbers" || fail "$name $version is not named in $licenses"
        longest=0
        for number in $numbers; do
            text=$(awk -v title="======== $number ========" '/^======== / { inside = $0 == title; next } inside' "$licenses")
            test "${#text}" -gt 10 || fail "the text $number of $name is not in $licenses"
            test "${#text}" -le $longest || longest=${#text}
        done
        test $longest -gt 500 || fail "the texts of $name are too short for a licence"
    done <"$directory/crates"
    grep -q "^======== Rust's standard library" "$licenses" || fail "Rust's standard library is not in $licenses"
    text=$(sed -n "/^======== Rust's standard library/,\$p" "$licenses")
    test "${#text}" -gt 500 || fail "the licence of Rust's standard library is not in $licenses"
    if echo "$text" | grep -q '<p>\|&quot;'; then fail "the licence of Rust's standard library is HTML"; fi
    ;;
missing_text)
    # A crate without a text, as cargo would tell of it.
    mkdir "$directory/bare-1.2.3"
    cat >"$directory/cargo" <<EOF
#!/bin/sh
case \$1 in
tree) echo 'bare v1.2.3|MIT' ;;
*) echo '{"reason":"compiler-artifact","package_id":"registry+x#bare@1.2.3","manifest_path":"$directory/bare-1.2.3/Cargo.toml"}' ;;
esac
EOF
    chmod +x "$directory/cargo"
    generate() {
        "$cmake" "-DOUTPUT=$directory/licenses.txt" -P "$source/cmake/licenses.cmake" -- "$directory/cargo" rustc 2>"$directory/log"
    }
    if generate; then fail "a crate without a licence text was accepted"; fi
    tr -s ' \n' ' ' <"$directory/log" | grep -q "bare 1.2.3 (MIT) has no licence text" || fail "$(cat "$directory/log")"
    test ! -e "$directory/licenses.txt" || fail "a file was written all the same"
    # The same crate with one.
    echo "Permission is hereby granted" >"$directory/bare-1.2.3/COPYING"
    generate || fail "$(cat "$directory/log")"
    grep -q "^  bare 1.2.3, MIT: \[1\]$" "$directory/licenses.txt" || fail "the crate is not named"
    grep -q "^Permission is hereby granted$" "$directory/licenses.txt" || fail "the text is not there"
    ;;
*) fail "there is no case $case" ;;
esac
