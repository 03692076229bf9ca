#!/usr/bin/env python3
"""Tokens per second and memory of lrpt against eager PyTorch, both run in turn in one sitting.

    cargo build --release
    python3 benches/compare_with_pytorch.py --python VENV/bin/python --peer torch_speed.py

For every row the two programs run alternately (lrpt, PyTorch, lrpt, PyTorch, ...), each run a process of its own with the same number of
threads, and each pair gives one ratio of their median tokens per second: on a machine whose speed drifts, only neighbours in time can
be compared. And not even those where others use the cores: PyTorch's threads wait for each other and lose several times more than ours.
What other processes used during a run is measured (on Linux) and printed, and a row that was disturbed is not judged. The table on standard output is Markdown; every single run goes to standard error, and with --json FILE also its figures.

Rows named `generate-…` write a text instead: `lrpt generate` from a run of two steps beside benches/torch_generate.py, both with keys
and values cached. Rows named `…-compiled` let the peer use torch.compile, which --compile does for all rows.

The shapes stand in configs/*.yaml alone: lrpt reports them, and the peer is started with them. The peer is a script that trains a dense
GPT (or, with `--rank R`, W = B A) and prints `tokens/s BEST best MEDIAN median` and `peak_rss_mb N`.

Needs Python 3.9 without any package; the Python given by --python needs PyTorch (`pip install torch`, on a CPU).
"""
import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
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
    # Whether the peer uses torch.compile whatever --compile says.
    compiled: bool = False
    # Tokens of a text to generate, with keys and values cached on both sides; 0: a row about training steps.
    generate: int = 0


ROWS = {
    "s-dense": Row("S dense / PyTorch dense", "bench-s", DENSE, speed_bar=1.0, memory_bar=0.5, product_bar=0.75),
    "s-adam": Row("S rank 96 `adam` / PyTorch dense", "bench-s", ADAM, speed_bar=1.8, memory_bar=0.5, optimizer_bar=0.07),
    "s-spectral": Row("S rank 96 `spectral` / PyTorch dense", "bench-s", SPECTRAL, speed_bar=1.7, memory_bar=0.5, optimizer_bar=0.12),
    "s-factored-adam": Row("S rank 96 `adam` / PyTorch factored 96", "bench-s", ADAM, peer_rank=96, speed_bar=1.05),
    "s-factored-spectral": Row("S rank 96 `spectral` / PyTorch factored 96", "bench-s", SPECTRAL, peer_rank=96, speed_bar=1.05),
    "m": Row("M rank 192 `spectral` / PyTorch dense", "bench-m", SPECTRAL, speed_bar=2.0),
    "gpt-small": Row("gpt-small / PyTorch dense of its shape", "gpt-small", speed_bar=1.5),
    "s-dense-compiled": Row("S dense / compiled dense", "bench-s", DENSE, speed_bar=1.15, product_bar=0.75, compiled=True),
    "s-spectral-compiled": Row("S rank 96 `spectral` / compiled dense", "bench-s", SPECTRAL, speed_bar=1.9, compiled=True),
    "s-factored-compiled": Row("S rank 96 `spectral` / compiled factored 96", "bench-s", SPECTRAL, peer_rank=96, speed_bar=1.3, compiled=True),
    "generate-200": Row("gpt-small, 200 tokens / dense with a cache", "gpt-small", speed_bar=2.0, generate=200),
    "generate-1000": Row("gpt-small, 1000 tokens / dense with a cache", "gpt-small", speed_bar=2.0, generate=1000),
    "generate-1000-compiled": Row("gpt-small, 1000 tokens / compiled dense with a cache", "gpt-small", speed_bar=2.0, generate=1000, compiled=True),
}


# Share of all cores that other processes may use during a run before its figures say nothing about the two programs.
DISTURBED = 0.05


class Cores:
    """What other processes use of the cores between its making and `used_by_others`."""

    def __init__(self):
        self.start = self.now()

    @staticmethod
    def now() -> Optional[tuple]:
        """Seconds of all cores that were busy or taken by other guests of the host, all seconds, and those of our finished children."""
        try:
            fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        except (OSError, ValueError):
            return None
        tick = os.sysconf("SC_CLK_TCK")
        idle = fields[3] + fields[4]
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (sum(fields) - idle) / tick, sum(fields) / tick, children.ru_utime + children.ru_stime

    def used_by_others(self) -> Optional[float]:
        """Share of all cores' time; none where the system does not tell."""
        end = self.now()
        if self.start is None or end is None:
            return None
        busy, all_seconds, children = (b - a for a, b in zip(self.start, end))
        return max(0.0, busy - children) / all_seconds if all_seconds > 0 else None


@dataclass
class Measurement:
    tokens_per_second: float
    peak_bytes: float


def run(command: list, threads: int, stderr: bool = False) -> str:
    """Standard output (or error) of a command; stops the comparison with the command's own words where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr.strip()}")
    return done.stderr if stderr else done.stdout


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
    if arguments.compile or row.compiled:
        command.append("--compile")
    text = run(command, arguments.threads)
    speed = re.search(r"tokens/s\s+\S+\s+best\s+(\S+)\s+median", text)
    memory = re.search(r"peak_rss_mb\s+(\d+)", text)
    if not speed or not memory:
        sys.exit(f"{' '.join(command)}\nprinted no `tokens/s BEST best MEDIAN median` and `peak_rss_mb N`:\n{text.strip()}")
    return Measurement(float(speed.group(1)), float(memory.group(1)) * 2**20)


def trained(arguments: argparse.Namespace, row: Row, folder: str) -> Path:
    """A run of two steps of a row's spec, to generate from: how good its text is does not matter."""
    few = ["train.max_steps=2", "schedule=constant", "eval.tokens=4096", "sample.tokens=0", "device=cpu"]
    settings = [argument for setting in few for argument in ("--set", setting)]
    command = [str(arguments.lrpt), "train", str(ROOT / "configs" / f"{row.spec}.yaml"), *row.settings, *settings]
    run([*command, "--run-dir", f"{folder}/run"], arguments.threads)
    return Path(folder) / "run"


def compare_generation(arguments: argparse.Namespace, name: str, row: Row) -> list:
    """The pairs of a row about generation. Our window moves by a quarter of its size once it is full; the peer's is as long as the text."""
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        place = trained(arguments, row, folder)
        shape = run_lrpt(argparse.Namespace(**{**vars(arguments), "steps": 1}), row)["shape"]
        peer = [str(arguments.python), str(ROOT / "benches" / "torch_generate.py")]
        for option, value in (("n-layer", shape["n_layer"]), ("n-head", shape["n_head"]), ("n-embd", shape["n_embd"]),
                              ("vocab", shape["vocabulary_size"]), ("rank", row.peer_rank), ("tokens", row.generate),
                              ("threads", arguments.threads)):
            peer += [f"--{option}", str(value)]
        if arguments.compile or row.compiled:
            peer.append("--compile")
        ours = [str(arguments.lrpt), "--threads", str(arguments.threads), "generate", str(place), "--prompt", "pub fn ", "--device", "cpu"]
        ours += ["--max-new-tokens", str(row.generate), "--slide", str(shape["block_size"] // 4), "--ignore-end-of-text"]
        for repeat in range(arguments.repeats):
            cores = Cores()
            rates = []
            for _ in range(3):
                said = run(ours, arguments.threads, stderr=True)
                rate = re.search(r"([\d.]+)(k?) tokens/s, the first", said)
                if not rate:
                    sys.exit(f"{' '.join(ours)}\nsaid no tokens/s:\n{said.strip()}")
                rates.append(float(rate.group(1)) * (1000 if rate.group(2) else 1))
            text = run(peer, arguments.threads)
            rate = re.search(r"tokens/s\s+\S+\s+best\s+(\S+)\s+median", text)
            if not rate:
                sys.exit(f"{' '.join(peer)}\nprinted no `tokens/s BEST best MEDIAN median`:\n{text.strip()}")
            ours_rate, theirs = statistics.median(rates), float(rate.group(1))
            pairs.append({"row": name, "used_by_others": cores.used_by_others(), "lrpt": {"tokens_per_second": ours_rate},
                          "peer": {"tokens_per_second": theirs}, "speed": ours_rate / theirs, "memory": None})
            print(
                f"{name} {repeat + 1}/{arguments.repeats}: lrpt {ours_rate:.0f}, PyTorch {theirs:.0f} tokens/s, "
                f"ratio {ours_rate / theirs:.2f}, others used {percent(pairs[-1]['used_by_others'])} of the cores",
                file=sys.stderr,
                flush=True,
            )
    return pairs


def compare(arguments: argparse.Namespace, name: str, row: Row) -> list:
    """The pairs of one row, in the order they were run."""
    if row.generate:
        return compare_generation(arguments, name, row)
    pairs = []
    for repeat in range(arguments.repeats):
        cores = Cores()
        ours = run_lrpt(arguments, row)
        if ours["debug_build"]:
            sys.exit(f"{arguments.lrpt} is a debug build, whose times say nothing; give the one of `cargo build --release`")
        theirs = run_peer(arguments, row, ours["shape"])
        pair = {
            "row": name,
            "used_by_others": cores.used_by_others(),
            "lrpt": ours,
            "peer": vars(theirs),
            "speed": ours["tokens_per_second"] / theirs.tokens_per_second,
            "memory": ours["memory"]["peak"] / theirs.peak_bytes if ours["memory"]["peak"] else None,
        }
        pairs.append(pair)
        print(
            f"{name} {repeat + 1}/{arguments.repeats}: lrpt {ours['tokens_per_second']:.0f}, PyTorch {theirs.tokens_per_second:.0f} tokens/s, "
            f"ratio {pair['speed']:.2f}, others used {percent(pair['used_by_others'])} of the cores",
            file=sys.stderr,
            flush=True,
        )
    return pairs


def percent(share: Optional[float]) -> str:
    return "an unknown share" if share is None else f"{100 * share:.0f}%"


def spread(values: list, digits: int = 2) -> str:
    """`median (min-max)`; a dash where nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{statistics.median(known):.{digits}f} ({min(known):.{digits}f}-{max(known):.{digits}f})"


def verdict(row: Row, pairs: list) -> str:
    """Which bars the medians meet, if nobody else used the cores."""
    disturbance = max(pair["used_by_others"] or 0.0 for pair in pairs)
    if disturbance > DISTURBED:
        return f"not judged: others used up to {percent(disturbance)} of the cores"
    middle = lambda key: statistics.median(key(pair) for pair in pairs)
    missed = []
    if middle(lambda pair: pair["speed"]) < row.speed_bar:
        missed.append("speed")
    if row.generate:
        return "met" if not missed else "missed: speed"
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
        "-" if row.generate else spread([100 * o["low_rank_optimizer_share"] for o in ours], 1) + "%"
        + (f" ≤ {100 * row.optimizer_bar:.0f}%" if row.optimizer_bar is not None else ""),
        "-" if row.generate else spread([o["operations"]["share_of_product_peak"] for o in ours]) + bar(row.product_bar, "≥"),
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
