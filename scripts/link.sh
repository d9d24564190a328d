#!/bin/sh
# Makes libunisono.a and libunisono.so of the archive that cargo made.
#
#   scripts/link.sh CARGO_ARCHIVE OUT_DIR VERSION SONAME
#
# The static library is one object that defines no global symbol but unisono_*: everything of Rust's
# in it is local, so it links beside other Rust archives. DEBUG=1 keeps line tables. CC, LD, OBJCOPY, AR
# and NM may name other tools, LIBS the system libraries that the shared library needs.
set -eu

archive=$1
out=$2
version=$3
soname=$4
root=$(cd "$(dirname "$0")/.." && pwd)
work=$out/link
object=$work/unisono.o
mkdir -p "$work"

"${NM:-nm}" --defined-only --extern-only "$archive" 2>/dev/null |
    awk '$3 ~ /^unisono_/ { print $3 }' | sort -u >"$work/exported"
test -s "$work/exported" || { echo "$archive defines no unisono_* symbol" >&2; exit 1; }

roots=
while read -r symbol; do roots="$roots -u $symbol"; done <"$work/exported"
# shellcheck disable=SC2086 # one word each
"${LD:-ld}" -r --gc-sections --force-group-allocation $roots -o "$object" "$archive"
# Bitcode of the standard library, where it comes with some, is of no use and confuses linker plugins.
"${OBJCOPY:-objcopy}" --wildcard --keep-global-symbol='unisono_*' \
    --remove-section=.llvmbc --remove-section=.llvmcmd "$object"
test -n "${DEBUG:-}" || "${OBJCOPY:-objcopy}" --strip-debug "$object"

rm -f "$out/libunisono.a"
"${AR:-ar}" rcsD "$out/libunisono.a" "$object"

"${CC:-cc}" -shared -o "$out/libunisono.so.$version" "$object" \
    -Wl,-soname,"$soname" -Wl,--version-script="$root/ffi/unisono.map" -Wl,-z,defs \
    -Wl,-z,relro -Wl,-z,now ${LDFLAGS:-} ${LIBS:--lgcc_s -lutil -lrt -lpthread -lm -ldl -lc}
ln -sf "libunisono.so.$version" "$out/$soname"
ln -sf "$soname" "$out/libunisono.so"
