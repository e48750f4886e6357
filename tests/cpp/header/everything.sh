#!/bin/sh
# Checks that everything.hpp calls every public member function of the header.
#
#   everything.sh <safetensors_lazy.hpp> <everything.hpp>
set -eu
header=$1 everything=$2

# Public: not after `private:`, not of a class of namespace detail. `outer` is what holds for the class around a nested one.
members=$(awk '
    /^namespace detail/ { detail = 1 }
    /^} \/\/ namespace detail/ { detail = 0 }
    /^(class|struct) / && !/;$/ { member = 1; private = /^class/ }
    /^};/ { member = 0 }
    /^    (class|struct) .*{$/ { nested = 1; outer = private; private = private || /^    class/; next }
    /^    };/ { nested = 0; private = outer; next }
    /^private:/ || /^    private:/ { private = 1 }
    /^public:/ { private = 0 }
    /^    public:/ { private = outer }
    member && !detail && !private && /^    (    )?[A-Za-z\[]/ && (nested == /^        /) && !/= delete|friend|operator|static_assert|return [^{]*;$/ {
        line = $0
        sub(/\/\/.*/, "", line)
        sub(/^ *template <[^;]*>> /, "", line)
        sub(/^ *template <[^>]*> /, "", line)
        if (match(line, /[ *&(][a-z_]+\)?\(/)) {
            name = substr(line, RSTART + 1, RLENGTH - 1)
            gsub(/[()]/, "", name)
            before = substr(line, 1, RSTART)
            # A type stands before a name that is declared.
            if (before ~ /[A-Za-z>_&*] *\(?$/ && before !~ /[=;.{]|for|while/)
                print name
        }
    }' "$header" | sort -u)

count=0
status=0
for name in $members; do
    count=$((count + 1))
    grep -q "[.>:]$name\\(<[a-z0-9:]*>\\)\\{0,1\\})\\{0,1\\}(" "$everything" ||
        { echo "everything.hpp does not call $name" >&2; status=1; }
done
test $count -gt 70 || { echo "found only $count member functions in $header" >&2; status=1; }
echo "$count member functions"
exit $status
