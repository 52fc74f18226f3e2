#!/usr/bin/env bash
# The full matrix of measurements, for a quiet machine: about 40 minutes with the default 5 seconds a
# figure. Writes JSON, pictures, the trend and the report into docs/results.
#
#   bench/full.sh [SECONDS] [DIRECTORY]
#
# Parts that need root (network namespaces) or programs that are not installed are skipped, and say so.
set -uo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-5}
out=${2:-docs/results}
bench=target/release/hovercraft-bench
cargo build --release --locked || exit 2
mkdir -p "$out"

run() {
    local name=$1
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    "$bench" run --seconds "$seconds" --json "$out/run-$name.json" --svg "$out/run-$name.svg" \
        --trend "$out/trend.jsonl" "$@"
    local code=$?
    if [ $code -ne 0 ]; then echo "run $name failed with $code" >&2; fi
}

modes="unreplicated raft hovercraft"

for mode in $modes; do
    run "tiny-max-$mode" --workload tiny --mode "$mode" --find-max --slo 2ms --seconds 2
    for outstanding in 1 50 1000; do
        run "tiny-$mode-$outstanding" --workload tiny --mode "$mode" --outstanding "$outstanding"
    done
    for bytes in 24 64 512 4096 65536; do
        run "size-$mode-$bytes" --workload size --mode "$mode" --request-bytes "$bytes" --outstanding 50
    done
    run "replies-$mode" --workload replies --mode "$mode" --outstanding 50
    run "reads-max-$mode" --workload reads --mode "$mode" --find-max --slo 5ms --seconds 2
    for workload in ycsb-a ycsb-b ycsb-c ycsb-d ycsb-f; do
        run "$workload-$mode" --workload "$workload" --mode "$mode" --outstanding 50
    done
done
for mode in raft hovercraft; do
    for replicas in 3 5 7 9; do
        run "nodes-$mode-$replicas" --workload nodes --mode "$mode" --replicas "$replicas" --outstanding 50
    done
    run "replies-5-$mode" --workload replies --mode "$mode" --replicas 5 --outstanding 50
    for bytes in 24 1024; do
        for outstanding in 1 50 1000; do
            run "durable-$mode-$bytes-$outstanding" --workload durable --mode "$mode" \
                --request-bytes "$bytes" --outstanding "$outstanding"
        done
    done
    run "netns-$mode" --workload tiny --mode "$mode" --netns --outstanding 50
    for loss in 0.1 1 5; do
        run "loss-$mode-$loss" --workload loss --mode "$mode" --netns --loss "$loss" --outstanding 50
    done
done
run failover --workload failover --rate 20000 --seconds 12

printf '\n== floor, peers, model, count, self-test\n'
"$bench" floor --json "$out/floor.json"
"$bench" peers --seconds "$seconds" --rounds 3 --json "$out/peers.json"
"$bench" model --requests 40000 --json "$out/model.json" --svg "$out"
"$bench" model --requests 40000 --floor "$out/floor.json" --run "$out/run-tiny-unreplicated-1000.json" \
    --json "$out/model-measured.json"
"$bench" count --baseline bench/instructions.json --json "$out/count.json"
"$bench" self-test --runs 100 --json "$out/self-test.json"
"$bench" report "$out"
