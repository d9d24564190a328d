#!/usr/bin/env bash
# The cases of the RDMA link, one after another, on the two devices of vm.sh; test.sh starts it there.
#
#   scripts/rdma/guest.sh [NAME...]    these cases (all)
#   scripts/rdma/guest.sh --list       their names and limits in seconds
#
# PROGRAM is the program that is tested (build/unisono), LINK the link of all cases but those that
# name one (rdma); tcp tries this script out. The last line is `N passed, N failed, N skipped`.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit

program=${PROGRAM:-build/unisono}
link=${LINK:-rdma}
# A rank that is gone, or cannot be reached, is to be reported within this time.
lost_s=30

# Name and limit in seconds. A case is the function of its name, in a process of its own.
cases="devices 30
check_2 300
check_3 300
loss 300
device_down 120
peer_device_down 120
cable_cut 120
card_of_two_down 120
killed 120
memlock 60
check_rsocket 300
killed_rsocket 120
memlock_rsocket 60"

# ---- what the cases stand on --------------------------------------------------------------------

# ranks N COMMAND [ARGUMENT...]: a command of the program on N ranks of this VM. Rank i is on device
# i % 2: what neighbours send crosses the cable.
ranks() {
    local count=$1
    shift
    UNISONO_RDMA_DEVICE=local_rank "$program" "$@" -n "$count"
}

# The same with little memory that may be locked. Root may lock all it likes, so this is less.
ranks_with_memlock() {
    local limit_kib=$1
    shift
    (
        ulimit -l "$limit_kib" || exit
        export -f ranks
        export program
        setpriv --bounding-set=-ipc_lock bash -c 'ranks "$@"' ranks "$@"
    )
}

fail() {
    echo "$*"
    exit 1
}

skip() {
    echo "$*"
    exit 77
}

cable_down() { ip link set "$1" down; }

# Packets are lost on their way from one end, and the card is told nothing.
cable_loses() { tc qdisc add dev "$1" root netem loss "$2"; }

# As vm.sh has made it. A card whose device was down is not mended by that: test.sh gives such cases
# a VM of their own.
mend_cable() { tc qdisc delete dev rdma0 root 2>/dev/null; }

# Packets that have crossed the cable, or gone any way where the link is another.
packets() {
    local ends=(/sys/class/net/rdma[01]/statistics/tx_packets)
    [ "$link" != tcp ] || ends+=(/sys/class/net/lo/statistics/tx_packets)
    cat "${ends[@]}" | awk '{ sum += $1 } END { print sum + 0 }'
}

# Starts ranks that call until something ends them, and waits until they are at it: `run` is their
# process, `said` the file of what they say.
start_long() {
    local before until=$((SECONDS + 60))
    said=$(mktemp)
    before=$(packets)
    ranks 2 perf all_reduce --link "$link" -b 64K -e 64K --out-of-place --iters 100000000 -c 0 \
        >"$said" 2>&1 &
    run=$!
    while [ "$(packets)" -lt $((before + 2000)) ]; do
        sleep 0.1
        kill -0 "$run" 2>/dev/null || fail "the ranks ended: $(<"$said")"
        [ "$SECONDS" -lt "$until" ] || fail "no calls in 60 s: $(<"$said")"
    done
}

# They end in time, with a failure in which somebody names this rank, or matches this.
loses() {
    local wanted=$1 begun=$SECONDS
    while kill -0 "$run" 2>/dev/null; do
        sleep 0.1
        [ $((SECONDS - begun)) -lt "$lost_s" ] || fail "nothing in $lost_s s: $(<"$said")"
    done
    wait "$run" && fail "the ranks succeeded: $(<"$said")"
    cat "$said"
    grep -qE "$wanted" "$said" || fail "nothing of $wanted"
    echo "after $((SECONDS - begun)) s"
}

# The process of a rank.
process_of() { grep -lszx "UNISONO_RANK=$1" /proc/[0-9]*/environ | cut -d / -f 3 | head -n 1; }

# ---- the cases ----------------------------------------------------------------------------------

devices() {
    local said card
    said=$("$program" info) || fail "info failed: $said"
    for card in rxe0 rxe1; do
        grep -q "$card" <<<"$said" || fail "no $card in: $said"
    done
}

check() {
    local link=$1 count=$2 before
    before=$(packets)
    ranks "$count" check --quick --link "$link" || exit 1
    [ "$(packets)" -gt $((before + 1000)) ] || fail "next to nothing has crossed the cable"
}
check_2() { check "$link" 2; }
check_3() { check "$link" 3; }

loss() {
    cable_loses rdma0 1%
    ranks 2 perf all_reduce --link "$link" -b 8 -e 1M -f 8 --out-of-place --iters 20 --rounds 3 -c 3
}

device_down() {
    start_long
    cable_down rdma0
    loses 'rank [01]'
}

# The same from the other end: the first device is well and hears nothing.
peer_device_down() {
    start_long
    cable_down rdma1
    loses 'rank [01]'
}

# A second cable as vm.sh makes the first, with rxe2 and rxe3 at its ends.
second_cable() {
    ip -batch - <<'END' && rdma link add rxe2 type rxe netdev rdma2 &&
link add rdma2 address 02:00:00:00:00:03 mtu 4200 type veth peer name rdma3 address 02:00:00:00:00:04 mtu 4200
address add 10.9.1.1/24 dev rdma2
address add 10.9.1.2/24 dev rdma3
link set rdma2 up
link set rdma3 up
neighbour add 10.9.1.2 lladdr 02:00:00:00:00:04 dev rdma2
neighbour add 10.9.1.1 lladdr 02:00:00:00:00:03 dev rdma3
END
        rdma link add rxe3 type rxe netdev rdma3
}

# Each rank has a card at each of two cables, and the second goes: its bytes go by the first.
card_of_two_down() {
    local rank said=() runs=() status=0
    second_cable || fail "no second cable"
    for rank in 0 1; do
        said[rank]=$(mktemp)
        UNISONO_RANK=$rank UNISONO_WORLD=2 UNISONO_ROOT=127.0.0.1:7117 UNISONO_JOB_KEY=two \
            UNISONO_LINKS=$link UNISONO_RDMA_DEVICE=rxe$rank,rxe$((rank + 2)) \
            "$program" perf all_reduce -b 64K -e 1M -f 16 --out-of-place \
            --iters 300 --rounds 3 -c 3 >"${said[rank]}" 2>&1 &
        runs[rank]=$!
    done
    # Large messages use both.
    until [ "$(cat /sys/class/net/rdma2/statistics/tx_packets)" -gt 2000 ]; do
        sleep 0.1
        kill -0 "${runs[0]}" 2>/dev/null || fail "the ranks ended early: $(<"${said[0]}")"
    done
    cable_down rdma3
    for rank in 0 1; do wait "${runs[rank]}" || status=1; done
    cat "${said[@]}"
    [ $status -eq 0 ] || fail "the ranks failed"
}

# No device knows of it: what is sent goes to nobody.
cable_cut() {
    start_long
    ip neighbour replace 10.9.0.2 lladdr 02:00:00:00:00:0f dev rdma0
    ip neighbour replace 10.9.0.1 lladdr 02:00:00:00:00:0f dev rdma1
    loses 'rank [01]'
}

killed() {
    start_long
    kill -KILL "$(process_of 1)"
    loses 'rank 1'
}

# By sockets of librdmacm, which themselves say nothing of a peer's death.
check_rsocket() { check rsocket 2; }
killed_rsocket() {
    local link=rsocket
    killed
}

memlock_rsocket() {
    local link=rsocket
    memlock
}

memlock() {
    local said
    said=$(ranks_with_memlock 64 2 perf all_reduce --link "$link" -b 1M -e 1M 2>&1) &&
        fail "64 KiB were enough: $said"
    echo "$said"
    grep -qiE 'memlock|locked memory|ulimit -l' <<<"$said" || fail "nothing of locked memory"
}

# ---- running them -------------------------------------------------------------------------------

if [ "${1-}" = --case ]; then
    "$2"
    exit
fi
if [ "${1-}" = --list ]; then
    echo "$cases"
    exit
fi
for name in "$@"; do
    grep -q "^$name " <<<"$cases" || fail "there is no case $name"
done
# A name that is given twice runs once.
wanted() {
    local name
    [ $# -gt 1 ] || return 0
    for name in "${@:2}"; do [ "$name" != "$1" ] || return 0; done
    return 1
}

passed=0 failed=0 skipped=0
log=$(mktemp)
while read -r name limit_s; do
    wanted "$name" "$@" || continue
    begun=$SECONDS
    timeout -k 5 "$limit_s" bash "$0" --case "$name" </dev/null >"$log" 2>&1
    status=$?
    took="$((SECONDS - begun)) s"
    case $status in
        0)
            passed=$((passed + 1))
            echo "ok $name ($took)"
            ;;
        77)
            skipped=$((skipped + 1))
            echo "skipped $name: $(tail -n 1 "$log")"
            ;;
        *)
            failed=$((failed + 1))
            case $status in
                124 | 137) why="more than $limit_s s" ;;
                *) why="status $status, $took" ;;
            esac
            echo "FAILED $name ($why)"
            tail -n 200 "$log" | sed 's/^/    /'
            ;;
    esac
    mend_cable
done <<<"$cases"
rm -f "$log"
echo
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
