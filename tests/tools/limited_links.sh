#!/usr/bin/env bash
# Seconds of a step between two processes whose link is limited: two network namespaces joined by a
# pair of virtual Ethernet devices with a token bucket (tc tbf) at each end.
#
#   tests/tools/limited_links.sh PROGRAM SPEC [SETTING…]
#
# Needs root (ip netns, tc); PROGRAM is any build of lrpt, SPEC is trained for a few steps at each
# rate, dense and as it is; a line has link, weights, seconds a step (least, median), bytes a step.
set -euo pipefail
program="$(realpath "$1")" spec="$(realpath "$2")"
shift 2
settings=()
for setting in "$@"; do settings+=(--set "$setting"); done
work="$(mktemp -d)"
names=("lrpt-$$-0" "lrpt-$$-1")
clean() {
    for name in "${names[@]}"; do ip netns del "$name" 2>/dev/null || true; done
    rm -rf "$work"
}
trap clean EXIT
for name in "${names[@]}"; do
    ip netns add "$name"
    ip -n "$name" link set lo up
done
ip link add "v$$-0" netns "${names[0]}" type veth peer name "v$$-1" netns "${names[1]}"
for i in 0 1; do
    ip -n "${names[$i]}" address add "10.77.0.$((i + 1))/24" dev "v$$-$i"
    ip -n "${names[$i]}" link set "v$$-$i" up
done

run() { # run NAME RANK SETTINGS…
    local name="$1" rank="$2"
    shift 2
    RANK="$rank" WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR=10.77.0.1 MASTER_PORT=29500 \
        ip netns exec "${names[$rank]}" "$program" --threads 1 train "$spec" --run-dir "$work/$name" \
        "${settings[@]}" "$@" >"$work/$name.$rank.log" 2>&1
}
printf 'link\tweights\tseconds a step, least\tmedian\tbytes a step\n'
for rate in unlimited 1gbit 100mbit; do
    for i in 0 1; do
        ip netns exec "${names[$i]}" tc qdisc del dev "v$$-$i" root 2>/dev/null || true
        [ "$rate" = unlimited ] ||
            ip netns exec "${names[$i]}" tc qdisc add dev "v$$-$i" root tbf rate "$rate" burst 256kb latency 50ms
    done
    for weights in low-rank dense; do
        more=()
        [ "$weights" = dense ] && more=(--set model.weights=dense)
        name="$rate-$weights"
        run "$name" 1 "${more[@]}" &
        second=$!
        run "$name" 0 "${more[@]}" || { cat "$work/$name.0.log"; exit 1; }
        wait "$second"
        python3 - "$work/$name/metrics.jsonl" "$rate" "$weights" <<'PYTHON'
import json, statistics, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
steps = [line for line in lines if "train/wire_bytes" in line]
tokens = [line["tokens"] for line in steps]
# The first step prepares buffers; the least of the others is what the link allows where other work
# shares the cores.
seconds = [(b - a) / line["train/tok_per_sec"] for a, b, line in zip(tokens, tokens[1:], steps[1:])]
least, median = min(seconds), statistics.median(seconds)
print(f"{sys.argv[2]}\t{sys.argv[3]}\t{least:.2f}\t{median:.2f}\t{steps[-1]['train/wire_bytes']}")
PYTHON
    done
done
