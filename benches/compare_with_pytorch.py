#!/usr/bin/env python3
"""Tokens per second and memory of lrpt against eager PyTorch, both run in turn in one sitting.

    cargo build --release
    python3 benches/compare_with_pytorch.py --python VENV/bin/python --peer torch_speed.py

For every row the two programs run alternately (lrpt, PyTorch, lrpt, PyTorch, ...), each run a process of its own with the same number of
threads, and each pair gives one ratio of their median tokens per second: on a machine whose speed drifts, only neighbours in time can
be compared. The table on standard output is Markdown; every single run goes to standard error, and with --json FILE also its figures.

The shapes stand in configs/*.yaml alone: lrpt reports them, and the peer is started with them. The peer is a script that trains a dense
GPT (or, with `--rank R`, W = B A) and prints `tokens/s BEST best MEDIAN median` and `peak_rss_mb N`.

Needs Python 3.9 without any package; the Python given by --python needs PyTorch (`pip install torch`, on a CPU).
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

ROOT = Path(__file__).resolve().parent.parent
DENSE = ["--set", "model.weights=dense"]
ADAM = ["--set", "optimizer.low_rank.dlra.momentum=adam"]
SPECTRAL = ["--set", "optimizer.low_rank.dlra.momentum=spectral"]


@dataclass
class Row:
    """A comparison: our spec, the peer's rank (0: dense), and what is asked for at least (or, of memory and time shares, at most)."""

    what: str
    spec: str
    settings: list = field(default_factory=list)
    peer_rank: int = 0
    speed_bar: float = 1.0
    memory_bar: Optional[float] = None
    optimizer_bar: Optional[float] = None
    product_bar: float = 0.65


ROWS = {
    "s-dense": Row("S dense / PyTorch dense", "bench-s", DENSE, speed_bar=1.0, memory_bar=0.5, product_bar=0.75),
    "s-adam": Row("S rank 96 `adam` / PyTorch dense", "bench-s", ADAM, speed_bar=1.8, memory_bar=0.5, optimizer_bar=0.07),
    "s-spectral": Row("S rank 96 `spectral` / PyTorch dense", "bench-s", SPECTRAL, speed_bar=1.7, memory_bar=0.5, optimizer_bar=0.12),
    "s-factored-adam": Row("S rank 96 `adam` / PyTorch factored 96", "bench-s", ADAM, peer_rank=96, speed_bar=1.05),
    "s-factored-spectral": Row("S rank 96 `spectral` / PyTorch factored 96", "bench-s", SPECTRAL, peer_rank=96, speed_bar=1.05),
    "m": Row("M rank 192 `spectral` / PyTorch dense", "bench-m", SPECTRAL, speed_bar=2.0),
    "gpt-small": Row("gpt-small / PyTorch dense of its shape", "gpt-small", speed_bar=1.5),
}


@dataclass
class Measurement:
    tokens_per_second: float
    peak_bytes: Optional[float]


def run(command: list, threads: int) -> str:
    """Standard output of a command; stops the comparison with the command's own words where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr.strip()}")
    return done.stdout


def run_lrpt(arguments: argparse.Namespace, row: Row) -> dict:
    command = [str(arguments.lrpt), "--threads", str(arguments.threads), "bench", str(ROOT / "configs" / f"{row.spec}.yaml")]
    command += ["--set", "device=cpu", *row.settings, "--steps", str(arguments.steps), "--warm-up", str(WARM_UP), "--json"]
    return json.loads(run(command, arguments.threads))


# The peer leaves its first two steps out; so do we.
WARM_UP = 2


def run_peer(arguments: argparse.Namespace, row: Row, shape: dict) -> Measurement:
    options = {
        "n-layer": shape["n_layer"],
        "n-head": shape["n_head"],
        "n-embd": shape["n_embd"],
        "block-size": shape["block_size"],
        "batch-size": shape["batch_size"],
        "accumulate": shape["gradient_accumulation_steps"],
        "vocab": shape["vocabulary_size"],
        "rank": row.peer_rank,
        "steps": WARM_UP + arguments.steps,
        "threads": arguments.threads,
    }
    command = [str(arguments.python), str(arguments.peer)]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    if arguments.compile:
        command.append("--compile")
    text = run(command, arguments.threads)
    speed = re.search(r"tokens/s\s+\S+\s+best\s+(\S+)\s+median", text)
    memory = re.search(r"peak_rss_mb\s+(\d+)", text)
    if not speed or not memory:
        sys.exit(f"{' '.join(command)}\nprinted no `tokens/s BEST best MEDIAN median` and `peak_rss_mb N`:\n{text.strip()}")
    return Measurement(float(speed.group(1)), float(memory.group(1)) * 2**20)


def compare(arguments: argparse.Namespace, name: str, row: Row) -> list:
    """The pairs of one row, in the order they were run."""
    pairs = []
    for repeat in range(arguments.repeats):
        ours = run_lrpt(arguments, row)
        if ours["debug_build"]:
            sys.exit(f"{arguments.lrpt} is a debug build, whose times say nothing; give the one of `cargo build --release`")
        theirs = run_peer(arguments, row, ours["shape"])
        pair = {
            "row": name,
            "lrpt": ours,
            "peer": vars(theirs),
            "speed": ours["tokens_per_second"] / theirs.tokens_per_second,
            "memory": ours["memory"]["peak"] / theirs.peak_bytes if ours["memory"]["peak"] else None,
        }
        pairs.append(pair)
        print(
            f"{name} {repeat + 1}/{arguments.repeats}: lrpt {ours['tokens_per_second']:.0f}, PyTorch {theirs.tokens_per_second:.0f} tokens/s, "
            f"ratio {pair['speed']:.2f}",
            file=sys.stderr,
            flush=True,
        )
    return pairs


def spread(values: list, digits: int = 2) -> str:
    """`median (min-max)`; a dash where nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{statistics.median(known):.{digits}f} ({min(known):.{digits}f}-{max(known):.{digits}f})"


def verdict(row: Row, pairs: list) -> str:
    """Which bars the medians meet."""
    middle = lambda key: statistics.median(key(pair) for pair in pairs)
    missed = []
    if middle(lambda pair: pair["speed"]) < row.speed_bar:
        missed.append("speed")
    if row.memory_bar is not None and pairs[0]["memory"] is not None and middle(lambda pair: pair["memory"]) > row.memory_bar:
        missed.append("memory")
    if row.optimizer_bar is not None and middle(lambda pair: pair["lrpt"]["low_rank_optimizer_share"]) > row.optimizer_bar:
        missed.append("optimizer")
    if middle(lambda pair: pair["lrpt"]["operations"]["share_of_product_peak"]) < row.product_bar:
        missed.append("product peak")
    return "met" if not missed else "missed: " + ", ".join(missed)


def table_line(row: Row, pairs: list) -> str:
    ours = [pair["lrpt"] for pair in pairs]
    bar = lambda value, sign: f" {sign} {value}" if value is not None else ""
    cells = [
        row.what,
        f"{statistics.median(o['tokens_per_second'] for o in ours):.0f}",
        f"{statistics.median(pair['peer']['tokens_per_second'] for pair in pairs):.0f}",
        spread([pair["speed"] for pair in pairs]) + bar(row.speed_bar, "≥"),
        spread([pair["memory"] for pair in pairs]) + bar(row.memory_bar, "≤"),
        spread([100 * o["low_rank_optimizer_share"] for o in ours], 1) + "%"
        + (f" ≤ {100 * row.optimizer_bar:.0f}%" if row.optimizer_bar is not None else ""),
        spread([o["operations"]["share_of_product_peak"] for o in ours]) + bar(row.product_bar, "≥"),
        verdict(row, pairs),
    ]
    return "| " + " | ".join(cells) + " |"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # Not resolved: the python of a virtual environment is a link whose place is its meaning.
    parser.add_argument("--python", type=Path, required=True, help="a Python that has PyTorch")
    parser.add_argument("--peer", type=Path, required=True, help="the peer's script")
    parser.add_argument("--lrpt", type=Path, default=ROOT / "target/release/lrpt", help="our binary (default: target/release/lrpt)")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help=f"any of {', '.join(ROWS)}")
    parser.add_argument("--repeats", type=int, default=3, help="pairs per row (default: 3)")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of each run, after two of warm-up (default: 4)")
    parser.add_argument("--threads", type=int, default=2, help="threads of both sides (default: 2)")
    parser.add_argument("--compile", action="store_true", help="let the peer use torch.compile")
    parser.add_argument("--json", type=Path, help="write every pair to this file as well")
    arguments = parser.parse_args()
    if min(arguments.repeats, arguments.steps, arguments.threads) < 1:
        parser.error("--repeats, --steps and --threads must be at least 1")
    for name in ("python", "peer", "lrpt"):
        path = getattr(arguments, name).absolute()
        if not path.exists():
            parser.error(f"--{name}: {path} does not exist")
        setattr(arguments, name, path)
    return arguments


def main() -> None:
    arguments = parse_arguments()
    lines, results = [], []
    for name in arguments.rows:
        pairs = compare(arguments, name, ROWS[name])
        results += pairs
        lines.append(table_line(ROWS[name], pairs))
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{arguments.repeats} pairs a row, {arguments.steps} timed steps a run, {arguments.threads} threads, f32; median (min-max) over pairs\n")
    print("| row | lrpt tokens/s | PyTorch tokens/s | speed ratio | memory ratio | low-rank optimizer | share of product peak | bars |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
