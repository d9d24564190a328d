#!/bin/sh
# Trains a small language model on two ranks, then shows that the number of ranks does not change
# a bit of the result. Arguments: the text files to train on; default: this repository's own sources.
set -eu
cd "$(dirname "$0")/.."
build=${BUILD:-build}
steps=${STEPS:-600}
compare_steps=${COMPARE_STEPS:-100}

if [ $# -eq 0 ]; then
    # shellcheck disable=SC2046 # names here hold no blanks
    set -- $(git ls-files '*.rs' '*.md' '*.c' '*.h' 2>/dev/null ||
        find . -path ./target -prune -o -path "./$build" -prune -o \
            \( -name '*.rs' -o -name '*.md' -o -name '*.c' -o -name '*.h' \) -print | LC_ALL=C sort)
fi

# ranks N PROGRAM...: N processes of one job on this machine.
ranks() {
    count=$1
    shift
    "$build/unisono" run -n "$count" -- "$@"
}

bar=
test ! -t 2 || bar=--progress
echo "training on $# files, 2 ranks, gradients all-reduced each step"
# shellcheck disable=SC2086 # nothing or one word
ranks 2 "$build/train_lm" $bar --steps "$steps" --sample 200 "$@"

echo
echo "the same $compare_steps steps with --deterministic on 1, 2 and 4 ranks"
first=
for count in 1 2 4; do
    line=$(ranks "$count" "$build/train_lm" --quiet --json --deterministic \
        --steps "$compare_steps" "$@" | grep '"checksum"')
    checksum=$(printf '%s\n' "$line" | sed 's/.*"checksum":"\([0-9a-f]*\)".*/\1/')
    loss=$(printf '%s\n' "$line" | sed 's/.*"val_loss":\([0-9.]*\).*/\1/')
    echo "  $count rank(s): validation loss $loss, weights checksum $checksum"
    if [ -z "$first" ]; then
        first=$checksum
    elif [ "$checksum" != "$first" ]; then
        echo "the weights differ: $checksum on $count ranks, $first on 1" >&2
        exit 1
    fi
done
test -n "$first" || { echo "no checksum was printed" >&2; exit 1; }
echo "same weights to the last bit on 1, 2 and 4 ranks: $first"
