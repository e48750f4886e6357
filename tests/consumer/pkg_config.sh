#!/bin/sh
# Builds and runs a program with what pkg-config says, in a folder of its own.
set -eu
library_dir=$1 kind=$2 compiler=$3 folder=$4
source_dir=$(cd "$(dirname "$0")" && pwd)

command -v pkg-config >/dev/null || { echo "there is no pkg-config"; exit 77; }
PKG_CONFIG_PATH=$library_dir/pkgconfig
export PKG_CONFIG_PATH
pkg-config --exists --print-errors 'safetensors_lazy >= 0.1 safetensors_lazy < 0.2'

case $kind in
    shared) flags="$(pkg-config --cflags --libs safetensors_lazy)" ;;
    # As the README tells users of the static library.
    static) flags="$(pkg-config --cflags --libs --static safetensors_lazy | sed 's/-lsafetensors_lazy/-l:libsafetensors_lazy.a/')" ;;
esac

mkdir -p "$folder"
# pkg-config quotes what the shell must not split: spaces in the prefix.
eval "\"\$compiler\" -std=c11 \"\$source_dir/consumer.c\" $flags -Wl,-rpath,\"\$library_dir\" -o \"\$folder/consumer\""
"$folder/consumer"
if ldd "$folder/consumer" | grep libsafetensors_lazy; then linked=shared; else linked=static; fi
test $linked = "$kind"
