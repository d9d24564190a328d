#!/usr/bin/env bash
# Times the RDMA link beside TCP and beside the programs of perftest and librdmacm, in turn, on two
# software cards; where rxe0 is missing, in a VM that has it.
#
#   scripts/rdma/perf.sh [ROUNDS]      each figure is the median of so many (3)
#
# PROGRAM is the program that is measured (build/unisono). Ratios hold within one run, and for
# software cards; times under emulation say nothing about hardware.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit

rounds=${1:-3}
[[ $rounds =~ ^[1-9][0-9]?$ ]] || { echo "perf.sh: \"$rounds\" is no number of rounds" >&2 && exit 2; }
if [ ! -e /sys/class/infiniband/rxe0 ]; then
    exec scripts/rdma/vm.sh --limit $((180 + 240 * rounds)) --memory 2048 \
        --package perftest --package rdmacm-utils --package ethtool \
        -- scripts/rdma/perf.sh "$rounds"
fi

program=${PROGRAM:-build/unisono}
sizes="65536 262144 1048576 4194304"
figures=$(mktemp -d) || exit
trap 'rm -rf -- "$figures"' EXIT

# ---- contestants: each prints microseconds, or nothing where it fails -----------------------------

ours() {
    local link=$1 what=$2 size=$3 iters=$4
    UNISONO_RDMA_DEVICE=local_rank timeout 100 "$program" perf "$what" --link "$link" -n 2 \
        -b "$size" -e "$size" --out-of-place --rounds 3 --iters "$iters" -c 1 --json --registered |
        sed -n 's/.*"median_us":\([0-9.]*\).*/\1/p'
}

# The same over TCP between two network namespaces, whose cable carries packets as large as rxe's:
# no device there puts them together or takes them apart.
across() {
    local what=$1 size=$2 iters=$3 rank port=$((6000 + RANDOM % 20000))
    local words="perf $what --link tcp -b $size -e $size --out-of-place --json"
    words+=" --rounds 3 --iters $iters -c 1"
    for rank in 0 1; do
        # shellcheck disable=SC2086 # words
        UNISONO_RANK=$rank UNISONO_WORLD=2 UNISONO_ROOT=10.8.0.1:$port \
            UNISONO_JOB_KEY=perf timeout 100 ip netns exec "tcp$rank" "$program" $words &
    done | sed -n 's/.*"median_us":\([0-9.]*\).*/\1/p'
}

make_cable() {
    local rank
    for rank in 0 1; do ip netns add "tcp$rank" || return; done
    ip link add tcp0 netns tcp0 mtu 4200 type veth peer name tcp1 netns tcp1 mtu 4200 || return
    for rank in 0 1; do
        ip -n "tcp$rank" address add "10.8.0.$((rank + 1))/24" dev "tcp$rank"
        ip -n "tcp$rank" link set lo up
        ip -n "tcp$rank" link set "tcp$rank" up
        ip netns exec "tcp$rank" ethtool -K "tcp$rank" tso off gso off gro off >/dev/null
    done
}

# Whether a server is there.
tcp_listens() { ss -H -l -t -n "sport = :$1" | grep -q .; }
rdma_listens() { rdma resource show cm_id | grep -q LISTEN; }

# both LISTENS SERVER CLIENT: two command lines, each in words without blanks.
both() {
    local listens=$1 server=$2 client=$3 until=$((SECONDS + 20))
    # shellcheck disable=SC2086 # words
    timeout 60 $server >/dev/null 2>&1 &
    until $listens || [ "$SECONDS" -ge "$until" ]; do sleep 0.1; done
    # shellcheck disable=SC2086 # words
    timeout 60 $client 2>/dev/null
    wait
}

# Both ends of perftest: its own port, the cards, their IPv4 addresses.
perftest() {
    local words="$* -x 1 -F"
    both "tcp_listens 18515" "$words -d rxe1" "$words -d rxe0 --source_ip 10.9.0.1 10.9.0.2"
}

# Writes both ways at once, as ours does; its megabytes are 2^20 and the sum of both ways.
write_both_ways() {
    perftest ib_write_bw -b -s "$1" -n 60 |
        awk -v size="$1" '$1 == size && $4 > 0 { print 2 * size / ($4 * 1048576) * 1e6 }'
}

# Its mean, as ours is; and what is usual, without the times that something else ran.
write_latency() {
    perftest ib_write_lat -s 8 -n 1000 | awk -v column="$1" '$1 == 8 { print $column }'
}

# One way at a time: so many transfers, then as many back.
stream() {
    local words="-S $1 -C $2 -I $3"
    both rdma_listens "rstream -b 10.9.0.2 $words" "rstream -s 10.9.0.2 -b 10.9.0.1 $words" |
        awk '$1 == "custom" { print $NF }'
}

# ---- the table ----------------------------------------------------------------------------------

# Takes a figure of a contestant in a row.
take() {
    local place=$figures/$1 said
    shift
    said=$("$@") && [ -n "$said" ] && echo "$said" >>"$place"
}

median() {
    [ -s "$figures/$1" ] || { echo - && return; }
    sort -g "$figures/$1" | awk '{ all[NR] = $1 } END { printf "%.0f", all[int((NR + 1) / 2)] }'
}

ratio() { awk -v theirs="$1" -v ours="$2" 'BEGIN {
    if (theirs > 0 && ours > 0) printf "%.2f", theirs / ours; else printf "-" }'; }

make_cable || { echo "perf.sh: no cable for TCP" >&2 && exit 1; }
able=''
"$program" check --help 2>/dev/null | grep -q -e '- rdma' && able=1
[ -n "$able" ] || echo "$program has no link rdma: only the others are measured" >&2

for ((round = 0; round < rounds; round++)); do
    for size in $sizes; do
        if [ -n "$able" ]; then
            take "all-rdma-$size" ours rdma all_reduce "$size" 20
            take "all-lo-$size" ours tcp all_reduce "$size" 20
            take "all-tcp-$size" across all_reduce "$size" 20
            take "pair-ours-$size" ours rdma sendrecv "$size" 20
            take "way-ours-$size" ours rdma pingpong "$size" 20
        fi
        take "pair-write-$size" write_both_ways "$size"
        take "way-stream-$size" stream "$size" 16 4
    done
    [ -z "$able" ] || take way-ours-8 ours rdma pingpong 8 500
    take way-mean-8 write_latency 6
    take way-write-8 write_latency 5
    take way-stream-8 stream 8 1 500
done

echo "microseconds, medians of $rounds; a ratio is their time by ours: above 1 ours is faster"
echo
echo "all_reduce, 2 ranks: rdma and tcp across a cable that carries packets of 4 KiB, and tcp"
echo "inside one host, where nothing is cut in packets"
printf '%9s %9s %9s %7s %9s %7s\n' bytes rdma tcp ratio lo ratio
for size in $sizes; do
    mine=$(median "all-rdma-$size") tcp=$(median "all-tcp-$size") lo=$(median "all-lo-$size")
    printf '%9s %9s %9s %7s %9s %7s\n' "$size" "$mine" "$tcp" "$(ratio "$tcp" "$mine")" \
        "$lo" "$(ratio "$lo" "$mine")"
done
echo
echo "two ranks send each other so many bytes at once: sendrecv, and ib_write_bw both ways"
printf '%9s %9s %9s %7s\n' bytes ours ib_write ratio
for size in $sizes; do
    mine=$(median "pair-ours-$size") write=$(median "pair-write-$size")
    printf '%9s %9s %9s %7s\n' "$size" "$mine" "$write" "$(ratio "$write" "$mine")"
done
echo
echo "one way at a time: pingpong, rstream, and ib_write_lat, its mean and its median"
printf '%9s %9s %9s %7s %9s %7s %9s %7s\n' bytes ours rstream ratio ib_write ratio median ratio
for size in 8 $sizes; do
    mine=$(median "way-ours-$size") stream=$(median "way-stream-$size")
    mean=$(median "way-mean-$size") write=$(median "way-write-$size")
    printf '%9s %9s %9s %7s %9s %7s %9s %7s\n' "$size" "$mine" "$stream" \
        "$(ratio "$stream" "$mine")" "$mean" "$(ratio "$mean" "$mine")" \
        "$write" "$(ratio "$write" "$mine")"
done
