#!/bin/sh
# Puts together a folder that checks and measures Unisono on a GPU machine without Rust or network.
#
#   scripts/gpu_bundle.sh OUT_DIR
#
# PROGRAM is the program, LIBRARY the static library (none: no programs in C), LIBS what that needs
# of the system. The folder's text is this repository's own. Fails when the folder has MOST_KIB KiB
# (61440) or more. DEBUG=1 leaves the program as it is.
set -eu

out=$1
root=$(cd "$(dirname "$0")/.." && pwd)
program=${PROGRAM:-$root/build/unisono}
library=${LIBRARY-$root/build/libunisono.a}
most_kib=${MOST_KIB:-61440}

rm -rf "$out"
mkdir -p "$out"
cp "$program" "$out/unisono"
test -n "${DEBUG:-}" || "${STRIP:-strip}" "$out/unisono"
cp "$root/scripts/gpu/run.sh" "$root"/LICENSE-MIT "$root"/LICENSE-APACHE "$out"
chmod 755 "$out/run.sh" "$out/unisono"

# object SET NAME COMPILER STANDARD SOURCE: one program of a set; its main is called NAME_main.
object() {
    "$3" "-std=$4" -O2 -pthread -I "$root/ffi/include" -c "$5" -o "$work/$1/$2.o"
    "${OBJCOPY:-objcopy}" --redefine-sym "main=$2_main" "$work/$1/$2.o"
    echo "PROGRAM($2)" >>"$work/$1/programs.h"
}

# set_of SET COMPILER: the set as one program.
set_of() {
    "${CC:-cc}" -std=c99 -I "$work/$1" -c "$root/scripts/gpu/programs.c" -o "$work/$1/programs.o"
    link "$out/$1_programs" "$2" "$work/$1"/*.o
}

# link OUT COMPILER ARGUMENT...: with the static library.
link() {
    made=$1 compiler=$2
    shift 2
    # shellcheck disable=SC2086 # words
    "$compiler" -O2 -pthread -I "$root/ffi/include" "$@" "$library" \
        ${LIBS:--lgcc_s -lutil -lrt -lpthread -lm -ldl -lc} -s -o "$made"
}

if [ -n "$library" ]; then
    work=$out.objects
    rm -rf "$work"
    mkdir -p "$work/c" "$work/cpp"
    # The library is large and its archive one object, so there are few programs: those in C, those
    # in C++, which need libstdc++ of the other machine (in ours it would need a newer glibc), and
    # the model.
    for test in calls bad deadline behind; do
        object c "$test" "${CC:-cc}" c11 "$root/tests/capi/$test.c"
    done
    for example in hello bucket errors; do
        object c "$example" "${CC:-cc}" c99 "$root/ffi/examples/$example.c"
    done
    for example in hello bucket; do
        object cpp "$example" "${CXX:-c++}" c++17 "$root/ffi/examples/$example.cpp"
    done
    object cpp hpp "${CXX:-c++}" c++17 "$root/ffi/tests/hpp.cpp"
    set_of c "${CC:-cc}"
    set_of cpp "${CXX:-c++}"
    link "$out/train_lm" "${CC:-cc}" -std=c99 "$root/ffi/examples/train_lm.c" \
        "$root"/ffi/examples/lm/*.c
    rm -rf "$work"
fi
cat "$root/README.md" "$root/ARCHITECTURE.md" "$root"/docs/*.md >"$out/text.txt"

# The newest glibc that any of the programs asks for.
glibc=$(find "$out" -type f -perm -u+x ! -name '*.sh' -exec "${OBJDUMP:-objdump}" -T {} + |
    sed -n 's/.*(GLIBC_\([0-9.]*\)).*/\1/p' | sort -t . -k 1,1n -k 2,2n -u | tail -n 1)
sed "s/@GLIBC@/$glibc/" "$root/scripts/gpu/README.txt" >"$out/README.txt"
{
    "$out/unisono" --version
    echo "needs glibc $glibc"
    "$out/unisono" info | sed -n '/^CUDA kernels in this build/,/^$/p'
} >"$out/BUILD.txt"

grep -q '^  for sm_' "$out/BUILD.txt" ||
    echo "there are no CUDA kernels in this build: no native call will run on a GPU" >&2

kib=$(du -sk "$out" | cut -f 1)
if [ "$kib" -ge "$most_kib" ]; then
    echo "$out has $kib KiB, $most_kib are too many" >&2
    exit 1
fi
tar -czf "$out.tar.gz" -C "$(dirname "$out")" "$(basename "$out")"
echo "$out: $kib KiB; $out.tar.gz: $(du -k "$out.tar.gz" | cut -f 1) KiB"
