#!/bin/sh
# Prints what a program of nccl-tests prints, for a benchmark that takes 9.5 and 8.5 us at any size.
# The file beside it, FAULT, says what goes wrong: wrong, crash, garbage, hang, short, rows, silent.
here=$(dirname "$0")
fault=$(cat "$here/FAULT" 2>/dev/null)
printf '%s\n' "device=$NCCL_TESTS_DEVICE" "shared=$NCCL_MULTI_RANK_GPU_ENABLE" \
    "libraries=$LD_LIBRARY_PATH" "arguments=$*" >"$here/SAID"
begin=8 end=8 factor=8 step='' ranks=1
while [ $# -gt 1 ]; do
    case $1 in
        -b) begin=$2 ;; -e) end=$2 ;; -f) factor=$2 ;; -i) step=$2 ;; -g) ranks=$2 ;;
    esac
    shift 2
done
echo '# nccl-tests version 0 nccl-headers=23007 nccl-library=23007'
echo '# Using devices'
rank=0
while [ "$rank" -lt "$ranks" ]; do
    printf '#  Rank %2d Group  0 Pid %6d on %10s device %2d [0000:01:00] A GPU\n' \
        "$rank" $$ a-host "$rank"
    rank=$((rank + 1))
done
case $fault in
    crash)
        echo 'a-host: Test NCCL failure common.cu:1 internal error' >&2
        kill -SEGV $$
        ;;
    garbage)
        head -c 100000 /dev/urandom
        exit 0
        ;;
    silent) exit 3 ;;
    hang)
        sleep 1000 &
        echo $! >"$here/SLEEPS"
        wait
        ;;
esac
echo '#'
printf '# %10s  %12s  %8s  %6s  %6s           out-of-place                       in-place\n' '' '' '' '' ''
four='%7s  %6s  %6s  %6s'
# shellcheck disable=SC2059 # the format is put together
printf "# %10s  %12s  %8s  %6s  %6s  $four  $four \n" size count type redop root \
    time algbw busbw '#wrong' time algbw busbw '#wrong'
# shellcheck disable=SC2059
printf "# %10s  %12s  %8s  %6s  %6s  $four  $four \n" '(B)' '(elements)' '' '' '' \
    '(us)' '(GB/s)' '(GB/s)' '' '(us)' '(GB/s)' '(GB/s)' ''
wrong=0
[ "$fault" != wrong ] || wrong=12
size=$begin
while [ "$size" -le "$end" ]; do
    [ "$fault" != short ] || [ "$size" -le "$begin" ] || break
    [ "$fault" != rows ] || printf '%12d  %12d' "$size" 99
    [ "$fault" != rows ] || echo
    # shellcheck disable=SC2059
    printf "%12d  %12d  %8s  %6s  %6d  $four  $four\n" "$size" $((size / 4)) float sum -1 \
        9.50 0.01 0.02 "$wrong" 8.50 0.01 0.02 0
    if [ -n "$step" ]; then size=$((size + step)); else size=$((size * factor)); fi
done
echo "# Out of bounds values : $wrong"
[ "$wrong" -eq 0 ]
