#!/usr/bin/env bash
# The cases of two ranks on two hosts, as seen by the ranks; full.sh starts it in its VMs.
#
#   scripts/rdma/hosts.sh CASE 0|1     this rank of the two, on this VM
#   scripts/rdma/hosts.sh CASE both    both, in the networks host0 and host1 of this VM
#
#   check    the quick suite
#   perf     all_reduce on registered memory
#   lost     calls until something ends them; `both` kills the process of rank 1. Before that it
#            prints `calls`, and after it that it ended. It is well when the error names the other
#            rank.
#   memlock  64 KiB may be locked, which siw tells root too. It is well when the error says so.
#
# Each prints `here` first.
# PROGRAM is the program that is tested (build/unisono), LINK its link (rdma); tcp tries this script
# out. The status is 0 where all is well.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit

program=${PROGRAM:-build/unisono}
# Within this time rank 0 is to say that rank 1 is gone.
lost_s=30
link=${LINK:-rdma}
case=${1:?which case} rank=${2:?which rank}

fail() {
    echo "rank $rank: $*"
    exit 1
}

# The program as this rank, with its link alone: ranks of one VM have others too.
as_rank() {
    UNISONO_RANK=$rank UNISONO_WORLD=2 UNISONO_ROOT=10.9.0.1:7000 UNISONO_JOB_KEY=two-hosts \
        UNISONO_LINKS=$link "$program" "$@"
}

# A host that is there refuses a connection to a port where nobody is; one that starts says nothing.
wait_for_other_host() {
    local other=10.9.0.$((2 - rank)) until=$((SECONDS + 200))
    until grep -q refused < <(timeout 1 bash -c ": </dev/tcp/$other/9" 2>&1); do
        [ "$SECONDS" -lt "$until" ] || fail "no host at $other"
    done
}

tenths_now() { echo $((${EPOCHREALTIME/[.,]/} / 100000)); }

packets() { cat /sys/class/net/rdma[01]/statistics/tx_packets; }

# The process of a rank.
process_of() { grep -lszx "UNISONO_RANK=$1" /proc/[0-9]*/environ | cut -d / -f 3 | head -n 1; }

# As the program starts ranks itself: such a rank ends with its input, and each line that begins
# with a byte 1 is an event (src/cli/check/event.rs).
check() {
    local input said before
    input=$(mktemp -u) && mkfifo "$input" && exec 3<>"$input"
    said=$(mktemp)
    before=$(packets)
    UNISONO_CLI_CHILD=1 as_rank check --quick --link "$link" <&3 >"$said"
    echo "rank $rank: status $?, $(($(packets) - before)) packets sent"
    LC_ALL=C awk -v rank="$rank" '
        { mark = substr($0, 1, 2); text = substr($0, 3) }
        mark == "\001b" { name = text }
        mark == "\001p" { passed++ }
        mark == "\001s" { skipped++ }
        mark == "\001f" { failed++; print "rank " rank ": " name ": " text }
        mark == "\001d" { done = 1 }
        substr(mark, 1, 1) != "\001" { print }
        END {
            print "rank " rank ": " passed + 0 " passed, " failed + 0 " failed, " \
                skipped + 0 " skipped" (done ? "" : "; it ended in: " name)
            exit failed || !done || passed < 100
        }' "$said" || exit 1
    [ "$(packets)" -gt $((before + 1000)) ] || fail "next to nothing has crossed the cable"
}

perf() {
    as_rank perf all_reduce -b 8 -e 4M -f 8 --registered --out-of-place --iters 10 --rounds 3 \
        -c 3 || fail "status $?"
}

lost() {
    local said before run until=$((SECONDS + 60))
    said=$(mktemp)
    before=$(packets)
    as_rank perf all_reduce -b 64K -e 64K --registered --out-of-place --iters 100000000 -c 0 \
        >"$said" 2>&1 &
    run=$!
    while [ "$(packets)" -lt $((before + 2000)) ]; do
        sleep 0.1
        kill -0 "$run" 2>/dev/null || fail "it ended: $(<"$said")"
        [ "$SECONDS" -lt "$until" ] || fail "no calls in 60 s: $(<"$said")"
    done
    echo calls
    wait "$run" && fail "it succeeded: $(<"$said")"
    cat "$said"
    echo "rank $rank ended"
    grep -q "rank $((1 - rank))" "$said" || fail "nothing of rank $((1 - rank))"
}

memlock() {
    local said
    ulimit -l 64
    said=$(as_rank perf all_reduce -b 1M -e 1M 2>&1) && fail "64 KiB were enough: $said"
    echo "$said"
    grep -qiE 'memlock|locked memory|ulimit -l' <<<"$said" || fail "nothing of locked memory"
}

# Both ranks, each in its network; a rank that is killed has no say.
both() {
    local rank of=() said victim='' until begun took
    said=$(mktemp)
    for rank in 0 1; do
        ip netns exec "host$rank" scripts/rdma/hosts.sh "$case" "$rank" >"$said.$rank" 2>&1 &
        of[rank]=$!
    done
    if [ "$case" = lost ]; then
        until=$((SECONDS + 100))
        until grep -qx calls "$said.0" && grep -qx calls "$said.1"; do
            sleep 0.1
            if [ "$SECONDS" -ge "$until" ] || ! kill -0 "${of[@]}" 2>/dev/null; then
                cat "$said.0" "$said.1"
                return 1
            fi
        done
        echo calls
        victim=$(process_of 1)
        kill -KILL "$victim" || return
        begun=$(tenths_now)
        wait "${of[1]}"
        of=("${of[0]}")
        while kill -0 "${of[0]}" 2>/dev/null; do
            sleep 0.1
            [ $(($(tenths_now) - begun)) -gt $((lost_s * 10)) ] || continue
            echo "rank 0 has not ended in $lost_s s"
            cat "$said.0"
            return 1
        done
        took=$(($(tenths_now) - begun))
        echo "error after $((took / 10)).$((took % 10)) s"
    fi
    local worst=0 pid
    for pid in "${of[@]}"; do wait "$pid" || worst=$?; done
    cat "$said.0"
    [ -n "$victim" ] || cat "$said.1"
    return "$worst"
}

case $case in check | perf | lost | memlock) ;; *) fail "there is no case $case" ;; esac
if [ "$rank" = both ]; then
    both
    exit
fi
echo here
wait_for_other_host
"$case"
