#!/usr/bin/env bash
# `make test-rdma`: boots a VM with two RDMA devices and runs guest.sh there. The last line is
# `N passed, N failed, N skipped`; where no VM is to be had, everything is skipped.
#
#   scripts/rdma/test.sh [NAME...]     these cases (all); guest.sh --list has the names
set -uo pipefail
cd "$(dirname "$0")/../.." || exit

limit_s=1800
folder=$(mktemp -d) || exit
vm=''
# shellcheck disable=SC2317 # a trap runs it
clean_up() {
    [ -z "$vm" ] || { kill "$vm" 2>/dev/null && wait "$vm"; }
    rm -rf -- "$folder"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

scripts/rdma/vm.sh --limit "$limit_s" --memory 2048 -- scripts/rdma/guest.sh "$@" \
    > >(tee "$folder/out") 2>"$folder/err" &
vm=$!
wait "$vm"
status=$?
vm=''
# The copy of the output may lag behind.
wait
cat "$folder/err" >&2

closing='^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$'
if tail -n 1 "$folder/out" | grep -qE "$closing"; then exit "$status"; fi

count() { grep -c "^$1 " "$folder/out"; }
why=$(tail -n 1 "$folder/err")
passed=$(count ok) failed=$(count FAILED) skipped=$(count skipped)
if [ "$status" -eq 125 ] && [ ! -s "$folder/out" ]; then
    skipped=1
    echo "skipped everything: ${why#vm.sh: }"
else
    failed=$((failed + 1))
    echo "FAILED the VM: ${why#vm.sh: }"
fi
echo
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
