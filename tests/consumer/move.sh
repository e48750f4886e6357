#!/bin/sh
# Copies the installed files to another prefix, and checks that none of them remembers the first.
set -eu
prefix=$1 library_dir=$2 moved=$3

rm -rf "$moved"
mkdir -p "$moved/include" "$moved/$library_dir/cmake" "$moved/$library_dir/pkgconfig"
cp -P "$prefix"/include/safetensors_lazy.h* "$moved/include"
cp -P "$prefix/$library_dir"/libsafetensors_lazy.* "$moved/$library_dir"
cp -RP "$prefix/$library_dir/cmake/safetensors_lazy" "$moved/$library_dir/cmake"
cp -P "$prefix/$library_dir/pkgconfig/safetensors_lazy.pc" "$moved/$library_dir/pkgconfig"

# /usr is a word in any file; longer prefixes are not.
case $prefix in
    /usr | /usr/local) ;;
    *)
        if grep -rF "$prefix" "$moved"; then
            echo "the files above name $prefix" >&2
            exit 1
        fi
        ;;
esac
