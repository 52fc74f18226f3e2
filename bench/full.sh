#!/usr/bin/env bash
# The full matrix of measurements, for a quiet machine: about 20 minutes. Writes JSON, pictures, the
# trend and the report into docs/results.
#
#   bench/full.sh [--seconds SECONDS] [--out DIRECTORY] [--bin-dir DIRECTORY] [PART…]
#
# SECONDS (2) is how long each figure is measured; the parts are runs, max, faults, floor, peers,
# model, count, switch, self-test and report, and all of them by default. What needs root (network namespaces)
# or programs that are not installed is skipped, and says so.
set -uo pipefail
cd "$(dirname "$0")/.."
seconds=2
out=docs/results
bin_dir=
parts=()
while [ $# -gt 0 ]; do
    case $1 in
        --seconds) seconds=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        --bin-dir) bin_dir=$2; shift 2 ;;
        runs|max|faults|floor|peers|model|count|switch|self-test|report) parts+=("$1"); shift ;;
        *) echo "full.sh: $1 is not an option or a part; see the first lines of bench/full.sh" >&2; exit 3 ;;
    esac
done
[ ${#parts[@]} -gt 0 ] || parts=(floor runs max faults peers model count switch self-test report)
if [ -z "$bin_dir" ]; then
    cargo build --release --locked -p hovercraft-apps -p hovercraft-bench || exit 2
    bin_dir=${CARGO_TARGET_DIR:-target}/release
fi
bench=$bin_dir/hovercraft-bench
mkdir -p "$out" || exit 3
failures=0
# The command that runs cleans up after itself first.
trap 'exit 2' INT TERM

step() {
    printf '\n== %s\n' "$*"
    "$bench" "$@"
    local code=$?
    if [ $code -ne 0 ]; then
        echo "full.sh: that ended with $code" >&2
        failures=$((failures + 1))
    fi
}

# One figure: its name, and what `run` is told.
run() {
    local name=$1
    shift
    step run --seconds "$seconds" --seconds-max "$seconds" --trend "$out/trend.jsonl" \
        --json "$out/run-$name.json" "$@"
}

runs() {
    local mode outstanding bytes replicas workload
    for mode in unreplicated raft hovercraft hovercraft++; do
        for outstanding in 1 50 1000; do
            run "tiny-$mode-$outstanding" --workload tiny --mode $mode --outstanding $outstanding
        done
        run "replies-$mode" --workload replies --mode $mode --outstanding 50
    done
    run "replies-hovercraft-5" --workload replies --mode hovercraft --replicas 5 --outstanding 50
    for mode in raft hovercraft hovercraft++; do
        for bytes in 24 64 512 4096 65536; do
            run "size-$mode-$bytes" --workload size --mode $mode --request-bytes $bytes --outstanding 50
        done
        for replicas in 3 5 7 9; do
            run "nodes-$mode-$replicas" --workload nodes --mode $mode --replicas $replicas --outstanding 50
        done
        for workload in ycsb-a ycsb-b ycsb-c ycsb-d ycsb-f; do
            run "$workload-$mode" --workload $workload --mode $mode --outstanding 50
        done
    done
    for bytes in 24 1024; do
        for outstanding in 1 50 1000; do
            run "durable-$bytes-$outstanding" --workload durable --request-bytes $bytes \
                --outstanding $outstanding
        done
    done
    run "by-switch" --workload tiny --mode hovercraft++ --by-switch --outstanding 50
    run "open-hovercraft" --workload tiny --rate 5000
}

# The searches: 20 short runs each.
max() {
    local mode
    for mode in unreplicated raft hovercraft hovercraft++; do
        step run --workload tiny --mode $mode --find-max --slo 2ms --seconds 0.7 --seconds-max 0.7 \
            --trend "$out/trend.jsonl" --json "$out/max-tiny-$mode.json" --svg "$out/max-tiny-$mode.svg"
        step run --workload reads --mode $mode --find-max --slo 5ms --seconds 0.7 --seconds-max 0.7 \
            --trend "$out/trend.jsonl" --json "$out/max-reads-$mode.json" --svg "$out/max-reads-$mode.svg"
    done
}

faults() {
    local loss
    run "netns-hovercraft" --workload tiny --netns --outstanding 50
    for loss in 0.1 1 5; do
        run "loss-$loss" --workload loss --loss $loss --outstanding 50
    done
    step run --workload failover --rate 15000 --seconds 9 --json "$out/failover.json" --svg "$out/failover.svg"
    step run --workload failover --mode hovercraft++ --by-switch --rate 15000 --seconds 9 \
        --json "$out/failover-switch.json" --svg "$out/failover-switch.svg"
}

for part in "${parts[@]}"; do
    case $part in
        runs) runs ;;
        max) max ;;
        faults) faults ;;
        floor) step floor --json "$out/floor.json" ;;
        peers) step peers --seconds "$seconds" --rounds 2 --json "$out/peers.json" ;;
        model)
            step model --requests 20000 --json "$out/model.json" --svg "$out"
            if [ -f "$out/floor.json" ] && [ -f "$out/run-tiny-unreplicated-1000.json" ]; then
                step model --requests 10000 --floor "$out/floor.json" \
                    --run "$out/run-tiny-unreplicated-1000.json" --json "$out/model-measured.json"
            fi
            ;;
        switch) step switch table1 overload jbsq --out "$out" ;;
        count) step count --baseline bench/instructions.json --json "$out/count.json" ;;
        self-test) step self-test --runs 100 --json "$out/self-test.json" ;;
        report) step report "$out" ;;
    esac
done
[ $failures -eq 0 ] || { echo "full.sh: $failures commands failed" >&2; exit 1; }
