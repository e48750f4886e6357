#!/bin/sh
# Checks that the relative links of all Markdown files below a directory lead to files.
set -eu
cd "$1"

find . -name '*.md' -exec grep -oHE '\]\([^)]+\)' {} + | sed 's/](\(.*\))$/\1/' >"${TMPDIR:-/tmp}/links.$$"
trap 'rm -f "${TMPDIR:-/tmp}/links.$$"' EXIT

status=0
count=0
while IFS=: read -r file link; do
    case $link in
    http://* | https://* | '#'*) continue ;;
    esac
    count=$((count + 1))
    test -e "$(dirname "$file")/${link%%#*}" || { echo "$file has a dead link: $link" >&2; status=1; }
done <"${TMPDIR:-/tmp}/links.$$"
test $count -gt 0 || { echo "there are no links below $1" >&2; status=1; }
exit $status
