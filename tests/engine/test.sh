#!/bin/sh
# Builds an engine that includes the library's source tree, installs it, and runs what was installed.
#
#   test.sh <case> <source tree> <directory to work in> <cargo's target directory> <cmake> <option>...
set -eu
case=$1 source=$2 directory=$3 cargo=$4 cmake=$5
shift 5
here=$(cd "$(dirname "$0")" && pwd)
prefix=$directory/installed

fail() { echo "$*" >&2; exit 1; }

rm -rf "$directory"
mkdir -p "$directory"

# build OPTION...: configures, builds and installs the engine.
build() {
    "$cmake" -S "$here" -B "$directory/build" "-DCMAKE_INSTALL_PREFIX=$prefix" "-DSAFETENSORS_LAZY_CARGO_TARGET_DIR=$cargo" "$@"
    "$cmake" --build "$directory/build"
    "$cmake" --install "$directory/build"
    # What was installed must not need what was built.
    rm -rf "$directory/build"
}

# Runs the programs: they print an error of the library.
run() {
    for program in "$@"; do
        "$prefix/bin/$program" || fail "$program does not run from where it is installed"
    done
}

installed() {
    for file in "$@"; do
        find "$prefix" -path "*/$file" | grep -q . || fail "$file is not installed"
    done
}

# The library's own package, in the prefix of the engine.
package() {
    installed include/safetensors_lazy.h include/safetensors_lazy.hpp libsafetensors_lazy.a libsafetensors_lazy.so \
        safetensors_lazyConfig.cmake pkgconfig/safetensors_lazy.pc \
        doc/safetensors_lazy/LICENSE-MIT doc/safetensors_lazy/THIRD-PARTY-LICENSES.txt
    if readelf --dynamic "$prefix"/lib*/libsafetensors_lazy.so | grep 'RPATH\|RUNPATH'; then
        fail "the library has the engine's RPATH"
    fi
    for kind in shared static; do
        "$cmake" -S "$here/../consumer" -B "$directory/consumer_$kind" "-DCMAKE_PREFIX_PATH=$prefix" -DKIND=$kind
        "$cmake" --build "$directory/consumer_$kind"
        "$directory/consumer_$kind/consumer"
    done
}

case $case in
subdirectory)
    build "-DSOURCE=$source" -DSAFETENSORS_LAZY_INSTALL=ON "$@"
    run engine_shared engine_static engine_cpp
    package
    ;;
excluded)
    build "-DSOURCE=$source" -DEXCLUDED=ON -DSAFETENSORS_LAZY_INSTALL=ON "$@"
    run engine_shared engine_static engine_cpp
    package
    ;;
not_installed)
    # By default nothing of the library is installed, except what the engine installs.
    build "-DSOURCE=$source" -DEXCLUDED=ON "$@"
    run engine_shared engine_static engine_cpp
    test "$(find "$prefix" -type f | wc -l)" -eq 4 || fail "more is installed than three programs and a library"
    ;;
c_only)
    build "-DSOURCE=$source" -DLANGUAGES=C "$@"
    run engine_shared engine_static
    ;;
fetch_content)
    # The files of the source tree, as they are now, in a repository of their own.
    repository=$directory/repository
    mkdir "$repository"
    if git -C "$source" rev-parse --is-inside-work-tree >/dev/null 2>&1; then
        git -C "$source" -c core.quotePath=off ls-files --cached --others --exclude-standard |
            while IFS= read -r file; do
                if test -e "$source/$file"; then echo "$file"; fi
            done >"$directory/files"
        tar -C "$source" -cf - -T "$directory/files" | tar -C "$repository" -xf -
    else
        tar -C "$source" -cf - --exclude ./build --exclude ./target --exclude ./fuzz/target . | tar -C "$repository" -xf -
    fi
    git -C "$repository" init --quiet --initial-branch=main
    git -C "$repository" add --all
    git -C "$repository" -c user.name=test -c user.email=test@localhost commit --quiet -m "The source tree"
    build "-DGIT=file://$repository" -DSAFETENSORS_LAZY_INSTALL=ON "$@"
    run engine_shared engine_static engine_cpp
    package
    ;;
*) fail "there is no case $case" ;;
esac
