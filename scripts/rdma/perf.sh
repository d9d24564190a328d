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
        --package perftest --package rdmacm-utils -- scripts/rdma/perf.sh "$rounds"
fi

program=${PROGRAM:-build/unisono}
sizes="65536 262144 1048576"
figures=$(mktemp -d) || exit
trap 'rm -rf -- "$figures"' EXIT

# ---- contestants: each prints microseconds, or nothing where it fails -----------------------------

ours() {
    local link=$1 what=$2 size=$3 iters=$4
    UNISONO_RDMA_DEVICE=local_rank timeout 100 "$program" perf "$what" --link "$link" -n 2 \
        -b "$size" -e "$size" --out-of-place --rounds 3 --iters "$iters" -c 1 --json |
        sed -n 's/.*"median_us":\([0-9.]*\).*/\1/p'
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

write_latency() { perftest ib_write_lat -s "$1" -n 1000 | awk -v size="$1" '$1 == size { print $6 }'; }

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

able=''
"$program" check --help 2>/dev/null | grep -q -e '- rdma' && able=1
[ -n "$able" ] || echo "$program has no link rdma: only the others are measured" >&2

for ((round = 0; round < rounds; round++)); do
    for size in $sizes; do
        if [ -n "$able" ]; then
            take "all-rdma-$size" ours rdma all_reduce "$size" 20
            take "all-tcp-$size" ours tcp all_reduce "$size" 20
            take "pair-ours-$size" ours rdma sendrecv "$size" 20
        fi
        take "pair-write-$size" write_both_ways "$size"
        take "pair-stream-$size" stream "$size" 16 4
    done
    [ -z "$able" ] || take pair-ours-8 ours rdma sendrecv 8 500
    take pair-write-8 write_latency 8
    take pair-stream-8 stream 8 1 500
done

echo "microseconds, medians of $rounds; a ratio is their time by ours: above 1 ours is faster"
echo
echo "all_reduce, 2 ranks: rdma across the cable, tcp inside one host"
printf '%9s %9s %9s %7s\n' bytes rdma tcp ratio
for size in $sizes; do
    mine=$(median "all-rdma-$size") tcp=$(median "all-tcp-$size")
    printf '%9s %9s %9s %7s\n' "$size" "$mine" "$tcp" "$(ratio "$tcp" "$mine")"
done
echo
echo "two ranks send each other so many bytes at once, ours by sendrecv; theirs is ib_write_bw both"
echo "ways (8 bytes: ib_write_lat) and rstream, which goes one way at a time"
printf '%9s %9s %9s %7s %9s %7s\n' bytes ours ib_write ratio rstream ratio
for size in 8 $sizes; do
    mine=$(median "pair-ours-$size") write=$(median "pair-write-$size")
    stream=$(median "pair-stream-$size")
    printf '%9s %9s %9s %7s %9s %7s\n' "$size" "$mine" "$write" "$(ratio "$write" "$mine")" \
        "$stream" "$(ratio "$stream" "$mine")"
done
