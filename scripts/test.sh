#!/bin/sh
# Everything that must hold, one step after the other; the closing line counts tests and steps.
set -u
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0
failed=0
skipped=0

# step NAME COMMAND...: one thing that passes or fails.
step() {
    name=$1
    shift
    echo "== $name"
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $name"
    fi
}

# tests NAME COMMAND...: a test run; its tests are counted.
tests() {
    name=$1
    shift
    echo "== $name"
    { "$@" 2>&1; echo "exit status $?"; } | tee "$log"
    good=$(awk '/^test result:/ { n += $4 } END { print n + 0 }' "$log")
    bad=$(awk '/^test result:/ { n += $6 } END { print n + 0 }' "$log")
    skips=$(grep -c '^skipped: ' "$log")
    # A run that ends without saying which test failed has failed all the same.
    if [ "$bad" -eq 0 ] && ! grep -q '^exit status 0$' "$log"; then bad=1; fi
    passed=$((passed + good))
    failed=$((failed + bad))
    skipped=$((skipped + skips))
}

step "formatting" "$cargo" fmt --check
step "lints" "$cargo" clippy --locked --all-targets -- -D warnings
step "libraries" make --no-print-directory lib
tests "tests" "$cargo" test --locked --no-fail-fast
step "documentation" env RUSTDOCFLAGS="-D warnings" "$cargo" doc --locked --no-deps --document-private-items

test "$skipped" -eq 0 || echo "$skipped skipped"
echo "$passed passed, $failed failed"
test "$failed" -eq 0
