#!/bin/sh
# Compiles the header after each standard header, alone in its translation unit.
#
#   each_standard_header.sh <safetensors_lazy.hpp> <standard_headers.hpp> <compiler> <option>...
set -eu
header=$1 list=$2
shift 2

# The standard headers that the header includes itself, compiled once: that is most of the time.
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
grep '^#include <' "$header" | grep -v '<ranges>' >"$directory/included.hpp"
"$@" -x c++-header "$directory/included.hpp" -o "$directory/included.hpp.gch"

status=0
count=0
while read -r line; do
    case $line in
    '#if '*) condition=$line ;;
    '#include '*)
        count=$((count + 1))
        printf '%s\n%s\n#endif\n#include <safetensors_lazy.hpp>\n' "$condition" "$line" |
            "$@" -fsyntax-only -include "$directory/included.hpp" -x c++ - ||
            { echo "does not compile after $line" >&2; status=1; }
        ;;
    esac
done <"$list"
echo "compiled after each of $count headers"
test "$count" -gt 100 || { echo "found too few headers in $list" >&2; status=1; }
exit $status
