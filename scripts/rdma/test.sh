#!/usr/bin/env bash
# `make test-rdma`: boots VMs with two RDMA devices and runs guest.sh there. The last line is
# `N passed, N failed, N skipped`; where no VM is to be had, everything is skipped.
#
#   scripts/rdma/test.sh [NAME...]     these cases (all); guest.sh --list has the names
set -uo pipefail
cd "$(dirname "$0")/../.." || exit

limit_s=900
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

# Runs cases in a VM of their own.
in_vm() {
    scripts/rdma/vm.sh --limit "$limit_s" --memory 2048 -- scripts/rdma/guest.sh "$@" \
        > >(grep --line-buffered -vE "$closing" | tee -a "$folder/out") 2>"$folder/err" &
    vm=$!
    wait "$vm"
    status=$?
    vm=''
    # The copy of the output may lag behind.
    wait
    cat "$folder/err" >&2
    # 1: some failed. Others: the VM has.
    [ "$status" -gt 1 ] || return 0
    why=$(tail -n 1 "$folder/err")
    if [ "$status" -eq 125 ] && [ ! -s "$folder/out" ]; then
        echo "skipped everything: ${why#vm.sh: }" | tee -a "$folder/out"
        return 1
    fi
    echo "FAILED the VM with $*: ${why#vm.sh: }" | tee -a "$folder/out"
}

closing='^([0-9]+ passed, [0-9]+ failed, [0-9]+ skipped)?$'
# What breaks a card is not mended: a VM for each.
breaking=(device_down peer_device_down card_of_two_down cable_cut killed killed_rsocket)
wanted=("$@")
[ $# -gt 0 ] || mapfile -t wanted < <(scripts/rdma/guest.sh --list | cut -d ' ' -f 1)
together=()
alone=()
for name in "${wanted[@]}"; do
    case " ${breaking[*]} " in
        *" $name "*) alone+=("$name") ;;
        *) together+=("$name") ;;
    esac
done
touch "$folder/out"
[ ${#together[@]} -eq 0 ] || in_vm "${together[@]}" || alone=()
for name in "${alone[@]}"; do in_vm "$name" || break; done

count() { grep -c "^$1 " "$folder/out"; }
passed=$(count ok) failed=$(count FAILED) skipped=$(count skipped)
echo
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
