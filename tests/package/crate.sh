#!/bin/sh
# Checks the links of the documents that are in the crate's package, among the files that are there.
set -eu
source=$1 cargo=$2 directory=$3
here=$(cd "$(dirname "$0")" && pwd)

rm -rf "$directory"
mkdir -p "$directory"
cd "$source"
"$cargo" package --list --allow-dirty --offline >"$directory.list"
# cargo makes these files itself.
grep -vE '^(Cargo.toml.orig|Cargo.lock|\.cargo_vcs_info.json)$' "$directory.list" >"$directory.files"
tar -cf - -T "$directory.files" | tar -C "$directory" -xf -
sh "$here/links.sh" "$directory"
