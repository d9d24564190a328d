#!/usr/bin/env bash
# `make test-rdma-full`: the RDMA link on software iWARP, and between two VMs, one of which dies.
# The last line is `N passed, N failed, N skipped`, after a table for docs/tests.md.
#
#   scripts/rdma/full.sh [NAME...]     these rows (all)
#   scripts/rdma/full.sh --list        their names
#
# Each row has VMs of its own; hosts.sh runs in them. Where no VM is to be had, all is skipped.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit

# One row, its start included. A rank whose peer's host is gone is to say so within lost_s.
limit_s=400
lost_s=30

# Name, device, hosts, what hosts.sh does there, which VM is killed.
rows="siw_check siw one check -
siw_perf siw one perf -
siw_killed siw one lost -
siw_memlock siw one memlock -
rxe_vms_check rxe two check -
rxe_vms_perf rxe two perf -
rxe_vms_second_dies rxe two lost 1
rxe_vms_first_dies rxe two lost 0
siw_vms_check siw two check -
siw_vms_perf siw two perf -
siw_vms_second_dies siw two lost 1
siw_vms_first_dies siw two lost 0"

if [ "${1-}" = --list ]; then
    cut -d ' ' -f 1 <<<"$rows"
    exit
fi
for name in "$@"; do
    grep -q "^$name " <<<"$rows" || { echo "full.sh: there is no row $name" >&2 && exit 2; }
done

folder=$(mktemp -d) || exit
# The processes of vm.sh by number of the VM.
vms=()
# shellcheck disable=SC2317 # a trap runs it
clean_up() {
    end_vms
    rm -rf -- "$folder"
}
end_vms() {
    local vm
    for vm in "${vms[@]}"; do kill "$vm" 2>/dev/null; done
    for vm in "${vms[@]}"; do wait "$vm" 2>/dev/null; done
    vms=()
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# start_vm NUMBER RANK OPTION...: the case in a VM, what it says in files of that number.
start_vm() {
    local number=$1 rank=$2
    local options=(--limit "$limit_s" --cpus "$cpus" --pid "$folder/pid$number" "${@:3}")
    [ "$device" = rxe ] || options+=(--siw)
    : >"$folder/out$number"
    scripts/rdma/vm.sh "${options[@]}" -- scripts/rdma/hosts.sh "$case" "$rank" \
        >"$folder/out$number" 2>"$folder/err$number" &
    vms[number]=$!
}

is_running() { kill -0 "${vms[$1]}" 2>/dev/null; }

# Waits for a line of a VM's. False where it ends without it; its limit ends it.
hears() {
    until grep -qx "$2" "$folder/out$1"; do
        is_running "$1" || return
        sleep 0.1
    done
}

# What a VM has ended with: 0 where all is well. Others are explained by what it has said.
ended() {
    wait "${vms[$1]}"
    local status=$?
    unset "vms[$1]"
    [ "$status" -ne 125 ] || why=$(tail -n 1 "$folder/err$1")
    return "$status"
}

in_one_vm() {
    start_vm 0 both --memory 2048
    ended 0 || return
    note=$(sed -n 's/^error after/; &/p' "$folder/out0")
    [ -z "$note" ] || note+=$(code_of 0)
}

# The code of the error that a rank has ended with.
code_of() { grep -oE '\b[A-Z]+_[A-Z]+ \([0-9]+\)' "$folder/out$1" | head -n 1 | sed 's/^/, /'; }

# The second VM needs a first that listens.
in_two_vms() {
    local net=$folder/net worst=0 number
    start_vm 0 0 --net "listen:$net"
    if ! hears 0 here; then
        ended 0
        return
    fi
    start_vm 1 1 --net "connect:$net"
    [ "$victim" = - ] || kill_one || return
    for number in "${!vms[@]}"; do ended "$number" || worst=$?; done
    return "$worst"
}

tenths_now() { echo $((${EPOCHREALTIME/[.,]/} / 100000)); }

# Kills the victim's QEMU, and takes the time until the other rank has ended.
kill_one() {
    local other=$((1 - victim)) begun took=0
    if ! hears 0 calls || ! hears 1 calls; then
        ended 0
        ended 1
        return 1
    fi
    begun=$(tenths_now)
    kill -KILL "$(<"$folder/pid$victim")" || return
    # As a VM that has died, so that is its status.
    wait "${vms[victim]}"
    unset "vms[victim]"
    until grep -q "^rank $other ended" "$folder/out$other"; do
        # It ends, or its limit ends it.
        is_running "$other" || break
        sleep 0.1
    done
    took=$(($(tenths_now) - begun))
    note="; error after $((took / 10)).$((took % 10)) s$(code_of "$other")"
    if [ "$took" -gt $((lost_s * 10)) ]; then
        ended "$other"
        why="rank $other took $((took / 10)).$((took % 10)) s"
        return 1
    fi
}

# A name that is given twice runs once.
wanted() {
    local name
    [ $# -gt 1 ] || return 0
    for name in "${@:2}"; do [ "$name" != "$1" ] || return 0; done
    return 1
}

describe() {
    case $case,$victim in
        check,*) echo "quick suite" ;;
        perf,*) echo "all_reduce, 8 B to 4 MiB, registered" ;;
        lost,-) echo "rank 1 killed" ;;
        memlock,*) echo "64 KiB that may be locked" ;;
        lost,*) echo "VM of rank $victim killed" ;;
    esac
}

passed=0 failed=0 skipped=0 any_vm=''
table="| case | device | hosts | outcome | seconds |
|---|---|---|---|---|"
while read -r name device hosts case victim; do
    wanted "$name" "$@" || continue
    begun=$SECONDS why='' note=''
    # Two VMs share this machine.
    if [ "$hosts" = one ]; then
        cpus=2 place="networks of one VM"
        in_one_vm </dev/null
    else
        cpus=1 place="two VMs"
        in_two_vms </dev/null
    fi
    status=$?
    end_vms
    took=$((SECONDS - begun))
    if [ "$status" -eq 0 ]; then
        passed=$((passed + 1)) outcome="passed$note" any_vm=1
        echo "ok $name ($took s)$note"
    elif [ "$status" -eq 125 ] && [ -z "$any_vm" ]; then
        skipped=$((skipped + 1)) outcome=skipped
        echo "skipped everything: ${why#vm.sh: }"
    else
        failed=$((failed + 1)) outcome="FAILED$note" any_vm=1
        echo "FAILED $name ($took s): ${why:-status $status}"
        for file in "$folder"/{out,err}[01]; do
            [ ! -s "$file" ] || { echo "  ${file##*/}:" && tail -n 100 "$file" | sed 's/^/    /'; }
        done
    fi
    rm -f -- "$folder"/{out,err,pid}[01] "$folder/net"
    table+="
| $(describe) | $device | $place | $outcome | $took |"
    [ "$outcome" != skipped ] || break
done <<<"$rows"

echo
echo "$table"
echo
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
