#!/bin/sh
# Checks and measures Unisono on this machine's GPU, within 8 minutes.
#
#   ./run.sh [--device N] [--nccl-tests DIR] [--out DIR] [--quick] [--budget SECONDS]
#
# Needs a driver, NCCL, awk and coreutils; README.txt says what the results mean. Writes DIR
# (results): summary.md, info.txt, a log of each step and lines of JSON of each measurement. The
# exit status is 0 only if every check has passed.
set -u

usage() {
    echo "usage: ./run.sh [--device N] [--nccl-tests DIR] [--out DIR] [--quick] [--budget SECONDS]"
}
wrong_use() {
    echo "run.sh: $1" >&2
    usage >&2
    exit 2
}
is_number() {
    case $1 in '' | *[!0-9]* | ???????*) return 1 ;; esac
}
absolute() {
    case $1 in /*) printf '%s\n' "$1" ;; *) printf '%s\n' "$PWD/$1" ;; esac
}

device=0 tests='' out=results quick='' budget=470
while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=1 ;;
        -h | --help)
            usage
            exit 0
            ;;
        --device | --nccl-tests | --out | --budget)
            [ $# -gt 1 ] || wrong_use "$1 needs a value"
            case $1 in
                --device) device=$2 ;;
                --nccl-tests) tests=$2 ;;
                --out) out=$2 ;;
                *) budget=$2 ;;
            esac
            shift
            ;;
        *) wrong_use "$1 is not known" ;;
    esac
    shift
done
is_number "$device" || wrong_use "--device: \"$device\" is no number"
is_number "$budget" || wrong_use "--budget: \"$budget\" is no number of seconds"
[ -z "$tests" ] || [ -d "$tests" ] || wrong_use "--nccl-tests: there is no folder $tests"
[ -n "$out" ] || wrong_use "--out: no name"
for tool in awk date sed timeout; do
    command -v "$tool" >/dev/null 2>&1 || wrong_use "this machine has no $tool"
done

out=$(absolute "$out")
[ -z "$tests" ] || tests=$(absolute "$tests")
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit 2
cd -- "$here" || exit 2
mkdir -p -- "$out" || exit 2
rm -f -- "$out"/summary.md "$out"/info.txt "$out"/[0-9][0-9]-*.log "$out"/*.json "$out"/.[st]*
begun=$(date +%s)
: >"$out/info.txt"
: >"$out/.steps"
: >"$out/.targets"
: >"$out/.tables"

# The driver and NCCL, where the program does not look itself.
first_of() {
    for file in "$@"; do
        if [ -f "$file" ]; then
            printf '%s\n' "$file"
            return
        fi
    done
}
in_system() {
    { ldconfig -p || /sbin/ldconfig -p; } 2>/dev/null | grep -q "^[[:space:]]*$1 "
}
in_library_path() {
    rest=${LD_LIBRARY_PATH:-}:
    while [ -n "$rest" ]; do
        folder=${rest%%:*}
        rest=${rest#*:}
        if [ -n "$folder" ] && [ -f "$folder/$1" ]; then return 0; fi
    done
    return 1
}
find_libraries() {
    if [ -z "${UNISONO_CUDA_LIB:-}" ] && ! in_library_path libcuda.so.1 &&
        ! in_system libcuda.so.1; then
        found=$(first_of /usr/local/nvidia/lib64/libcuda.so.1 /usr/lib/wsl/lib/libcuda.so.1 \
            /usr/lib64/libcuda.so.1 /usr/lib/x86_64-linux-gnu/libcuda.so.1 \
            /usr/local/cuda/compat/libcuda.so.1)
        if [ -n "$found" ]; then export UNISONO_CUDA_LIB="$found"; fi
    fi
    if [ -z "${UNISONO_NCCL_LIB:-}${NCCL_HOME:-}" ] && ! in_library_path libnccl.so.2 &&
        ! in_system libnccl.so.2; then
        wheel=packages/nvidia/nccl/lib/libnccl.so.2
        found=$(first_of "${VIRTUAL_ENV:-/nowhere}"/lib/python3*/site-$wheel \
            "${CONDA_PREFIX:-/nowhere}"/lib/python3*/site-$wheel \
            "${HOME:-/nowhere}"/.local/lib/python3*/site-$wheel \
            /usr/local/lib/python3*/dist-$wheel /usr/local/lib/python3*/site-$wheel \
            /usr/lib/python3*/dist-$wheel /opt/*/lib/python3*/site-$wheel \
            /usr/local/cuda/lib64/libnccl.so.2 /usr/local/lib/libnccl.so.2)
        if [ -n "$found" ]; then export UNISONO_NCCL_LIB="$found"; fi
    fi
    # nccl-tests' programs look for NCCL the system's way: last, so that a choice made stays.
    case ${UNISONO_NCCL_LIB:-} in
        /*/libnccl.so.2)
            LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}${UNISONO_NCCL_LIB%/*}"
            export LD_LIBRARY_PATH
            ;;
    esac
}

failed_checks=0 number=0
elapsed() { echo $(($(date +%s) - begun)); }

# note KIND NAME OUTCOME SECONDS DETAIL COMMAND
note() {
    printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$@" >>"$out/.steps"
    printf '%-8s %-26s %4s s  %s\n' "$3" "$2" "$4" "$5"
    if [ "$1" = check ] && [ "$3" != passed ]; then failed_checks=$((failed_checks + 1)); fi
}

# A line for a cell of a table: short, and without what would end the cell.
cell() { tr -d '\000-\010\013-\037\177' | tr '\t|`' "   '" | cut -c1-300; }

# step KIND NAME LIMIT COMMAND...: a check, a probe, which may fail, or a measurement (measure),
# whose output goes to NAME.json. True if it passed. What there is no time for is skipped.
step() {
    kind=$1 name=$2 limit=$3
    shift 3
    number=$((number + 1))
    log=$out/$(printf '%02d' "$number")-$name.log
    shown=$(printf '%s ' "$@" | sed 's/ $//' | cell)
    left=$((budget - $(elapsed)))
    if [ "$left" -lt 5 ]; then
        note "$kind" "$name" skipped 0 "the $budget s are over" "$shown"
        return 1
    fi
    if [ "$limit" -gt "$left" ]; then limit=$left; fi
    started=$(date +%s)
    printf '$ %s\n' "$shown" >"$log"
    if [ "$kind" = measure ]; then
        timeout -k 5 "$limit" "$@" >"$out/$name.json" 2>>"$log" </dev/null
        status=$?
        cat -- "$out/$name.json" >>"$log"
    else
        timeout -k 5 "$limit" "$@" >>"$log" 2>&1 </dev/null
        status=$?
    fi
    seconds=$(($(date +%s) - started))
    closing=$(sed -e 1d -e '/^[[:space:]]*$/d' "$log" | tail -n 1 | cell)
    complaint=$(grep '^unisono: ' "$log" | tail -n 1 | cell)
    if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
        note "$kind" "$name" failed "$seconds" "not done after $limit s" "$shown"
    elif [ "$status" -ne 0 ]; then
        note "$kind" "$name" failed "$seconds" "status $status: ${complaint:-$closing}" "$shown"
    elif [ "$kind" = check ] && [ "${2:-}" = check ] && ! counted "$closing"; then
        note "$kind" "$name" failed "$seconds" "no case has passed: $closing" "$shown"
    else
        if [ "$kind" = measure ] || [ "${2:-}" = info ]; then closing=; fi
        note "$kind" "$name" passed "$seconds" "$closing" "$shown"
        return 0
    fi
    return 1
}

# Whether a closing line of `unisono check` says that cases have passed, and none failed.
counted() {
    case $1 in
        0\ passed,*) return 1 ;;
        [0-9]*\ passed,\ 0\ failed,*) return 0 ;;
        *) return 1 ;;
    esac
}

skip() { note "$1" "$2" skipped 0 "$3" "$4"; }

# target NAME WANTED MEASURED VERDICT
target() { printf '| %s | %s | %s | %s |\n' "$@" >>"$out/.targets"; }
unmeasured() { target "$1" "$2" - "not measured: $3"; }

# What the awk programs below share: a value of a line of JSON that holds no objects.
field='
function field(name,    at, rest) {
    at = index($0, "\"" name "\":")
    if (!at) return ""
    rest = substr($0, at + length(name) + 3)
    if (substr(rest, 1, 1) == "\"") { rest = substr(rest, 2); sub(/".*/, "", rest) }
    else sub(/[,}].*/, "", rest)
    return rest
}
function number(name,    text) {
    text = field(name)
    return text ~ /^[0-9]/ ? text + 0 : -1
}'

# table TITLE FILE COLUMN...: lines of JSON that have the first of the columns, as a table.
table() {
    title=$1 file=$2
    shift 2
    [ -s "$file" ] || return 0
    {
        printf '\n### %s\n\n' "$title"
        awk -v names="$*" "$field"'
            # Floats with what figures are read for; the lines of JSON have the rest.
            function short(text) {
                if (text !~ /^[0-9]+[.e]/) return text
                return sprintf(text + 0 < 1000 ? "%.3f" : "%.1f", text)
            }
            BEGIN {
                count = split(names, name, " ")
                head = "|"; rule = "|"
                for (i = 1; i <= count; i++) { head = head " " name[i] " |"; rule = rule "---|" }
                print head; print rule
            }
            field(name[3]) != "" {
                row = "|"
                for (i = 1; i <= count; i++) row = row " " short(field(name[i])) " |"
                gsub(/[`<>]/, "", row)
                print row
            }' "$file"
    } >>"$out/.tables"
}

unisono=./unisono

# ---- what is here

find_libraries
step check program 20 "$unisono" --version
step check info 30 "$unisono" info
cp -- "$log" "$out/info.txt" 2>/dev/null
found=$(grep "^  device $device: " "$out/info.txt" | head -n 1 | sed 's/^  //' | cell)
driver=$(grep '^  CUDA [0-9]' "$out/info.txt" | head -n 1 | sed 's/^  //' | cell)
nccl=$(grep '^  NCCL [0-9]' "$out/info.txt" | head -n 1 | sed 's/^  //' | cell)
if [ -n "$found" ]; then
    note check device passed 0 "$found" "unisono info"
else
    note check device failed 0 "no device $device in info.txt" "unisono info"
fi
if [ -n "$nccl" ]; then
    note check nccl passed 0 "$nccl" "unisono info"
else
    note check nccl failed 0 "no NCCL in info.txt" "unisono info"
fi
shares=
case $nccl in *"shared GPUs"*) shares=1 ;; esac

# ---- the checks

check() {
    name=$1 limit=$2
    shift 2
    step check "$name" "$limit" "$unisono" check --device "$device" "$@"
}
suite=--quick
# The quick run of the quick selection: calls of some counts.
filter=
[ -z "$quick" ] || filter=counts
check nccl-1-rank 90 --backend nccl --link mem -n 1 $suite --filter "$filter"
for ranks in 2 4; do
    check "native-threads-$ranks" 90 --link mem -n "$ranks" $suite --filter "$filter"
    check "native-processes-$ranks" 90 --link shm -n "$ranks" $suite --filter "$filter"
done
if [ -n "$quick" ]; then check kernels 90 --kernels --quick; else check kernels 90 --kernels; fi

programs() {
    for program in calls bad deadline errors; do
        step check "c-$program" 60 ./c_programs "$program"
    done
    for set in c cpp; do
        for program in hello bucket; do
            step check "$set-$program" 20 "$unisono" run -n 2 -- "./${set}_programs" "$program"
        done
    done
    # A program that runs far ahead of a late rank, on the native backend and beside NCCL; and with
    # one queue for all streams, which CUDA does not promise to keep from standing still.
    pieces=4000
    [ -z "$quick" ] || pieces=200
    behind() {
        kind=$1 name=$2
        shift 2
        step "$kind" "$name" 60 env UNISONO_DEVICE="$device" "$@" \
            "$unisono" run -n 2 -- ./c_programs behind $pieces
    }
    behind check behind UNISONO_BACKEND=native
    behind probe behind-one-connection UNISONO_BACKEND=native CUDA_DEVICE_MAX_CONNECTIONS=1
    if [ -n "$shares" ]; then
        behind check behind-nccl UNISONO_BACKEND=nccl NCCL_MULTI_RANK_GPU_ENABLE=1
    fi
    step check cpp-header 20 "$unisono" run -n 2 -- ./cpp_programs hpp
    steps=30
    [ -z "$quick" ] || steps=4
    sums=
    for ranks in 1 2 4; do
        if step check "train-lm-$ranks" 60 "$unisono" run -n "$ranks" --no-label -- ./train_lm \
            --quiet --json --deterministic --steps "$steps" text.txt; then
            sums="$sums $(sed -n 's/.*"checksum":"\([0-9a-f]*\)".*/\1/p' "$log")"
        fi
    done
    # One word three times.
    # shellcheck disable=SC2086
    set -- $sums
    if [ $# -eq 3 ] && [ "$1" = "$2" ] && [ "$2" = "$3" ]; then
        note check train-lm-bits passed 0 "weights $1 on 1, 2 and 4 ranks" "checksums compared"
    else
        note check train-lm-bits failed 0 "weights:${sums:- none}" "checksums compared"
    fi
}
if [ -x ./c_programs ]; then
    programs
else
    skip check c-programs "not in this bundle" "./c_programs NAME"
fi

# ---- the measurements

# nccl-tests makes as many calls at every size.
largest=256M rounds='--rounds 5' loop='--iters 100'
[ -z "$quick" ] || largest=4K rounds='--rounds 2 --iters 5' loop='--iters 5'
perf() {
    name=$1 limit=$2
    shift 2
    step measure "$name" "$limit" "$unisono" perf --json --device "$device" "$@"
}
figures="op ranks bytes dtype in_place median_us min_us busbw wrong"

median_us() { awk "$field"' field("median_us") != "" { print field("median_us"); exit }' "$1"; }
want="at most 12 us"
what="8-byte all_reduce, 2 ranks on one GPU"
for link in shm mem; do
    if [ "$link" = shm ]; then ranks=processes; else ranks=threads; fi
    name=latency-$ranks
    # shellcheck disable=SC2086 # words
    if perf "$name" 30 all_reduce -n 2 --backend native --link $link -b 8 -e 8 $rounds; then
        median=$(median_us "$out/$name.json")
        verdict=$(awk -v t="${median:-999999}" 'BEGIN { print t <= 12 ? "met" : "not met" }')
        target "$what, $ranks" "$want" "${median:--} us" "$verdict"
        # shellcheck disable=SC2086
        table "$what, $ranks" "$out/$name.json" $figures
    else
        unmeasured "$what, $ranks" "$want" "$name failed or was skipped"
    fi
done

what="reduction kernels beside a copy on the device"
want="0.92 or more"
sizes=
[ -z "$quick" ] || sizes='-b 64K -e 64K --rounds 2 --iters 2'
# shellcheck disable=SC2086
if perf kernel-speed 90 --kernels $sizes; then
    result=$(awk "$field"'
        field("kernel") != "" && field("ratio") ~ /^[0-9]/ {
            sums = field("kernel") ~ /sum|reduce|fold/
            if (sums && !seen) { least = ""; seen = 1 }
            if (sums || !seen) {
                if (least == "" || field("ratio") + 0 < least) {
                    least = field("ratio") + 0
                    which = field("kernel") " " field("dtype") " " field("bytes") " B"
                }
            }
        }
        END {
            if (least == "") print "-;not measured: no ratios"
            else printf "%.3f (%s);%s\n", least, which, (least >= 0.92 ? "met" : "not met")
        }' "$out/kernel-speed.json")
    target "$what" "$want" "$(printf %s "${result%%;*}" | cell)" "${result##*;}"
    table "Kernels" "$out/kernel-speed.json" kernel dtype bytes median_us bandwidth ratio
else
    unmeasured "$what" "$want" "kernel-speed failed or was skipped"
fi

sides="op ranks bytes in_place theirs_us ours_us theirs_busbw ours_busbw ratio"
compare_nccl() {
    what="$1 ranks on one GPU, native beside NCCL 2.30 or later"
    want="faster at every size"
    if [ -z "$shares" ]; then
        skip measure "nccl-$1-ranks" "no NCCL here has ranks that share a GPU" \
            "unisono perf --vs nccl"
        unmeasured "$what" "$want" "no NCCL that can"
        return
    fi
    ops='all_reduce all_gather reduce_scatter broadcast all_to_all'
    [ -z "$quick" ] || ops=all_reduce
    all="$out/nccl-$1-ranks.json"
    parts=
    : >"$all"
    for op in $ops; do
        # shellcheck disable=SC2086
        if perf "nccl-$1-ranks-$op" 60 $op -n "$1" --vs nccl -b 8 -e $largest $rounds; then
            parts="$parts $op"
        fi
        cat -- "$out/nccl-$1-ranks-$op.json" >>"$all" 2>/dev/null
    done
    if [ "$parts" = " $ops" ]; then
        result=$(awk "$field"'
            field("ratio") ~ /^[0-9]/ && field("theirs_us") != "" {
                count++
                if (field("ratio") > 1) faster++
                if (least == "" || field("ratio") + 0 < least) {
                    least = field("ratio") + 0
                    which = field("op") " " field("bytes") " B"
                }
            }
            END {
                if (!count) { print "-;not measured: no ratios"; exit }
                printf "%d of %d faster, the least %.3f (%s);", faster, count, least, which
                print(faster == count ? "met" : "not met")
            }' "$all")
        target "$what" "$want" "${result%%;*}" "${result##*;}"
    else
        unmeasured "$what" "$want" "not every collective was measured"
    fi
    # shellcheck disable=SC2086
    table "$1 ranks on one GPU: NCCL (theirs) beside native (ours)" "$all" $sides
}
compare_nccl 2
compare_nccl 4

what="NCCL through us beside NCCL called directly"
want="at most 1 us or 2 % more"
if [ -z "$tests" ]; then
    skip measure nccl-tests "--nccl-tests DIR was not given" "unisono perf --vs DIR"
    unmeasured "$what" "$want" "no nccl-tests"
else
    done_all=1
    ops='all_reduce all_gather reduce_scatter broadcast reduce'
    [ -z "$quick" ] || ops=all_reduce
    all=$out/nccl-tests.json
    : >"$all"
    for op in $ops; do
        # shellcheck disable=SC2086
        perf "nccl-tests-$op" 60 $op -n 1 --backend nccl --link mem --vs "$tests" -b 8 \
            -e $largest $loop || done_all=
        cat -- "$out/nccl-tests-$op.json" >>"$all" 2>/dev/null
    done
    if [ -n "$done_all" ]; then
        result=$(awk "$field"'
            number("theirs_us") > 0 && number("theirs_moved") > 0 {
                count++
                over = number("ours_us") - number("theirs_us")
                if (over <= 1 || over <= 0.02 * number("theirs_us")) good++
                else if (over > worst) { worst = over; which = field("op") " " field("bytes") " B" }
            }
            END {
                if (!count) { print "-;not measured: no times"; exit }
                printf "%d of %d", good, count
                if (good < count) printf ", the worst %.2f us more (%s)", worst, which
                print(good == count ? ";met" : ";not met")
            }' "$all")
        target "$what" "$want" "${result%%;*}" "${result##*;}"
    else
        unmeasured "$what" "$want" "not every collective was measured"
    fi
    # shellcheck disable=SC2086
    table "1 rank: nccl-tests (theirs) beside NCCL through Unisono (ours)" "$all" \
        $sides
fi

if [ -z "$quick" ]; then
    for ranks in 2 4; do
        # shellcheck disable=SC2086
        perf "all-$ranks-ranks" 60 all -n "$ranks" --backend native -b 8 -e 64M $rounds
        # shellcheck disable=SC2086
        table "Every call, $ranks ranks on one GPU, native" "$out/all-$ranks-ranks.json" $figures
    done
fi

# ---- the summary

total=$(elapsed)
verdict="every check passed"
[ "$failed_checks" -eq 0 ] || verdict="$failed_checks checks did not pass"
{
    printf '# Unisono on a GPU: %s\n\n' "$verdict"
    printf -- '- %s, %s on %s\n' "$("$unisono" --version 2>/dev/null | cell)" \
        "$(date -u '+%Y-%m-%d %H:%M UTC')" "$(uname -sr)"
    printf -- '- GPU: %s\n- driver: %s\n- NCCL: %s\n' "${found:-none found}" \
        "${driver:-none found}" "${nccl:-none found}"
    printf -- '- %s of %s s; %s\n\n## Steps\n\n' "$total" "$budget" \
        "$([ -n "$quick" ] && echo 'a quick run, whose figures mean little' || echo 'a whole run')"
    printf '| step | command | outcome | seconds | detail |\n|---|---|---|---|---|\n'
    awk -F '\t' '{ printf "| %s | `%s` | %s | %s | %s |\n", $2, $6, $3, $4, $5 }' "$out/.steps"
    printf '\n## Targets\n\n| target | wanted | measured | verdict |\n|---|---|---|---|\n'
    cat -- "$out/.targets"
    printf '\n## Figures\n'
    cat -- "$out/.tables"
} >"$out/summary.md"
rm -f -- "$out"/.[st]*
echo
echo "$verdict; $total s; see $out/summary.md"
[ "$failed_checks" -eq 0 ]
