#!/usr/bin/env python3
"""Training by 1, 2 and 4 processes at S and M, low rank and dense: seconds, bytes on the wire, memory, and whether the weights are the same.

    cargo build --release
    python3 benches/scaling.py --plot docs/scaling.svg

Each run is `lrpt --threads 1 train configs/bench-s.yaml --processes P ...` of a few steps on the bytes of a text of its own, with 4
micro-batches, so that every process count has work for all. The first step is left out. On standard output is a Markdown table; a
machine that does something else meanwhile shows it in the difference between the least and the median seconds. `--rows s-low-rank`
chooses among the groups.

Needs Python 3.9 without any package.
"""
import argparse
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DENSE = ["model.weights=dense", "optimizer.matrices={muon: {learning_rate: 1e-2}}"]
GROUPS = {
    "s-low-rank": ("S, rank 96, spectral", "bench-s", 2, []),
    "s-dense": ("S, dense, Muon", "bench-s", 2, DENSE),
    "m-low-rank": ("M, rank 192, spectral", "bench-m", 1, []),
    "m-dense": ("M, dense, Muon", "bench-m", 1, DENSE),
}


def run(lrpt, folder, group, processes, steps):
    """Least and median seconds of a step, bytes sent in one, megabytes by rank and a hash of the weights."""
    _, spec, batch, settings = GROUPS[group]
    run_dir = folder / f"{group}-{processes}"
    settings = settings + [
        f"train.max_steps={steps}", "train.gradient_accumulation_steps=4", f"train.batch_size={batch}", "train.log_every=1",
        f"eval.every={steps}", "eval.tokens=1024", "sample.tokens=0", "data.tokenizer=bytes",
        "data.source={text: {path: %s, val_fraction: 0.1}}" % (folder / "text.txt"),
    ]
    command = [lrpt, "--threads", "1", "train", str(ROOT / "configs" / f"{spec}.yaml"), "--run-dir", str(run_dir)]
    command += [part for setting in settings for part in ("--set", setting)]
    command += ["--processes", str(processes)] if processes > 1 else []
    ended = subprocess.run(command, cwd=folder, text=True, capture_output=True)
    if ended.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{ended.stderr}")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["time/step"] for line in lines if "time/step" in line and line["step"] > 1]
    sent = max((line.get("train/wire_bytes", 0) for line in lines), default=0)
    peaks = re.findall(r"peak memory(?: by rank)? ([^\n]*)", ended.stderr)
    checkpoint = sorted((run_dir / "checkpoints").glob("step-*"))[-1]
    weights = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()[:12]
    return min(seconds), statistics.median(seconds), sent, peaks[-1] if peaks else "", weights


def plot(found, path):
    """Speed against processes, one line a group, as SVG."""
    colours = ["#0072b2", "#d55e00", "#009e73", "#b3478f"]
    left, top, width, height = 60, 40, 420, 280
    most = max(2.0, max(speed for _, points in found for _, speed in points))
    x = lambda processes: left + {1: 0.05, 2: 0.5, 4: 0.95}[processes] * width
    y = lambda speed: top + height * (1 - speed / (1.1 * most))
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 380" width="760" height="380" role="img">',
        "<title>Speed of a training step against one process</title>",
        "<style>text{font:12px system-ui,sans-serif;fill:#24292f}.f{stroke:#8c959f;fill:none}.g{stroke:#d8dee4}</style>",
        '<rect width="760" height="380" fill="#fff"/>',
        f'<text x="{left}" y="22" style="font-weight:600;font-size:14px">Speed of a step against one process '
        f"({os.cpu_count()} cores, one thread a process)</text>",
    ]
    for tick in [0, 0.5, 1, 1.5, 2]:
        if y(tick) >= top:
            out.append(f'<line class="g" x1="{left}" x2="{left + width}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
            out.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    out.append(f'<rect class="f" x="{left}" y="{top}" width="{width}" height="{height}"/>')
    for processes in (1, 2, 4):
        out.append(f'<text x="{x(processes)}" y="{top + height + 18}" text-anchor="middle">{processes}</text>')
    out.append(f'<text x="{left + width / 2}" y="{top + height + 40}" text-anchor="middle">processes</text>')
    for index, (what, points) in enumerate(found):
        colour = colours[index]
        line = " ".join(f"{x(p):.1f},{y(s):.1f}" for p, s in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x(p):.1f}" cy="{y(s):.1f}" r="3.5" fill="{colour}"/>' for p, s in points]
        row = top + 20 + 22 * index
        out.append(f'<line x1="510" x2="534" y1="{row}" y2="{row}" stroke="{colour}" stroke-width="2"/>')
        out.append(f'<text x="542" y="{row + 4}">{what}</text>')
    Path(path).write_text("\n".join(out + ["</svg>"]) + "\n")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--lrpt", default=str(ROOT / "target/release/lrpt"))
    arguments.add_argument("--rows", nargs="+", choices=GROUPS, default=list(GROUPS))
    arguments.add_argument("--steps", type=int, default=5)
    arguments.add_argument("--plot", metavar="FILE.svg")
    arguments = arguments.parse_args()
    print("| model | processes | seconds a step: least, median | against one, least | sent a step, bytes | peak memory by rank | weights |")
    print("|---|---|---|---|---|---|---|")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        sources = sorted((ROOT / "src").rglob("*.rs"))
        (folder / "text.txt").write_text("".join(path.read_text() for path in sources))
        for group in arguments.rows:
            what, points = GROUPS[group][0], []
            for processes in (1, 2, 4):
                least, median, sent, peak, weights = run(arguments.lrpt, folder, group, processes, arguments.steps)
                points.append((processes, least))
                ratio = f"{points[0][1] / least:.2f}"
                print(f"| {what} | {processes} | {least:.2f}, {median:.2f} | {ratio} | {sent:,} | {peak} | {weights} |", flush=True)
            found.append((what, [(processes, points[0][1] / least) for processes, least in points]))
    if arguments.plot:
        plot(found, arguments.plot)


if __name__ == "__main__":
    main()
