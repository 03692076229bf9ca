"""Event files as the real TensorBoard reads them, and metrics.csv as pandas and trackio do, against
metrics.jsonl: a run that was stopped, torn at the end of its event file, and gone on with.

    cargo build --release --bin lrpt
    python3 -m venv venv && venv/bin/pip install tensorboard pandas trackio
    venv/bin/python tests/tools/event_files.py
"""

import json
import math
import os
import pathlib
import subprocess
import tempfile

import pandas
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.util import tensor_util

ROOT = pathlib.Path(__file__).resolve().parents[2]
LRPT = ROOT / "target" / "release" / "lrpt"
SPEC = """
name: small
seed: 5
device: cpu
model: {n_layer: 2, n_head: 2, n_embd: 32, block_size: 16, weights: {low_rank: {rank: 8}}}
data: {source: {text: {path: text.txt, val_fraction: 0.2}}, tokenizer: chars}
train: {max_steps: 60, batch_size: 4, log_every: 5, tensorboard: true}
rank: {tolerance: {tau: 0.05}}
schedule: {cosine: {warmup_steps: 2, final_ratio: 0.1}}
eval: {every: 20, tokens: 256}
checkpoint: {every: 20}
sample: {tokens: 40}
"""


def lrpt(place, *arguments):
    command = [LRPT, "--threads", "1", *arguments]
    ended = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def train(place):
    """Stops after the checkpoint of step 20 was left behind, then goes on from there."""
    words = "the rank of a matrix grows and shrinks when its tail is small or large".split()
    text = " ".join(words[(7 * n * n + n // 5) % len(words)] for n in range(4000))
    (place / "text.txt").write_text(text)
    (place / "spec.yaml").write_text(SPEC)
    run = place / "runs" / "small"
    lrpt(place, "train", "spec.yaml", "--stop-after", "33")
    # As if it had been killed while it wrote: half a record, and step 33 never saved.
    events = sorted((run / "tensorboard").iterdir())
    with events[-1].open("ab") as file:
        file.write(b"\x20\x00\x00\x00\x00\x00\x00\x00\x12\x34")
    newest = run / "checkpoints" / "step-00000033"
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    lrpt(place, "resume", "runs/small")
    assert len(list((run / "tensorboard").iterdir())) == 2
    return run


def compare(run):
    metrics = lines(run / "metrics.jsonl")
    board = EventAccumulator(
        str(run / "tensorboard"),
        size_guidance={"scalars": 0, "histograms": 0, "tensors": 0},
    ).Reload()
    expected = {}
    for line in metrics:
        for key, value in line.items():
            if key not in ("step", "time"):
                expected.setdefault(key, []).append((line["step"], value))
    tags = board.Tags()
    assert set(tags["scalars"]) == set(expected), set(tags["scalars"]) ^ set(expected)
    for key, values in expected.items():
        found = [(event.step, event.value) for event in board.Scalars(key)]
        assert [step for step, _ in found] == [step for step, _ in values], (key, found, values)
        for (_, read), (step, written) in zip(found, values):
            if not key.startswith(("time/", "mem/")) and key != "train/tok_per_sec":
                close = math.isclose(read, written, rel_tol=1e-6)
                assert close, f"{key} at step {step}: {read} is not {written}"
    steps = len({line["step"] for line in metrics})
    print(f"{len(expected)} scalars over {steps} steps agree with metrics.jsonl")

    spectra = lines(run / "spectra.jsonl")
    for name in [key for key in spectra[0] if key != "step"]:
        found = board.Histograms(f"spectrum/{name}")
        assert [event.step for event in found] == [line["step"] for line in spectra], name
        for event, line in zip(found, spectra):
            values, histogram = line[name], event.histogram_value
            assert math.isclose(histogram.min, min(values)), (name, histogram, values)
            assert math.isclose(histogram.max, max(values)), (name, histogram, values)
            assert histogram.num == len(values) == sum(histogram.bucket), (name, histogram)
            assert math.isclose(histogram.sum, sum(values)), (name, histogram, values)
    assert board.Histograms("ranks")[0].histogram_value.num == len(spectra[0]) - 1
    print(f"{len(spectra[0]) - 1} spectra at {len(spectra)} validations agree with spectra.jsonl")

    def text(event):
        return tensor_util.make_ndarray(event.tensor_proto).item().decode()

    samples = {event.step: text(event) for event in board.Tensors("sample")}
    for path in (run / "samples").iterdir():
        shown = samples[int(path.stem.removeprefix("step-"))]
        unindented = [line.removeprefix("    ") for line in shown.split("\n")]
        assert unindented == path.read_text().splitlines(), (shown, path.read_text())
    assert "log_every: 5" in text(board.Tensors("spec")[0])
    assert board.summary_metadata["sample"].plugin_data.plugin_name == "text"
    print(f"{len(samples)} samples and the spec are shown as text")

    content = board.SummaryMetadata(hparams.SESSION_START_INFO_TAG).plugin_data.content
    settings = hparams.parse_session_start_info_plugin_data(content).hparams
    assert settings["train.max_steps"].number_value == 60, settings
    assert settings["rank.tolerance.targets.q.tau"].number_value == 0.05, settings
    content = board.SummaryMetadata(hparams.SESSION_END_INFO_TAG).plugin_data.content
    assert hparams.parse_session_end_info_plugin_data(content).status == 1
    print(f"{len(settings)} settings are hyper-parameters")


def compare_table(run):
    table = pandas.read_csv(run / "metrics.csv")
    assert table.columns[0] == "step" and table["step"].is_monotonic_increasing
    assert table["step"].is_unique
    merged = {}
    for line in lines(run / "metrics.jsonl"):
        merged.setdefault(line["step"], {}).update(line)
    assert list(table["step"]) == list(merged)
    for _, row in table.iterrows():
        line = merged[row["step"]]
        for key in table.columns:
            if line.get(key) is None:
                assert pandas.isna(row[key]), (row["step"], key)
            else:
                assert row[key] == line[key], (row["step"], key, row[key], line[key])
    pandas.to_datetime(table["time"], utc=True)
    print(f"metrics.csv: {table.shape[0]} rows and {table.shape[1]} columns agree, every digit")


def import_table(run, folder):
    """What trackio.import_csv keeps of metrics.csv: it shortens names, and nothing else."""
    os.environ["TRACKIO_DIR"] = str(folder / "trackio")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    trackio.import_csv(str(run / "metrics.csv"), project="project", name="small")
    imported = SQLiteStorage.get_logs("project", "small")
    table = pandas.read_csv(run / "metrics.csv")
    assert [row["step"] for row in imported] == list(table["step"])
    for row, (_, written) in zip(imported, table.drop(columns=["step", "time"]).iterrows()):
        values = [value for key, value in row.items() if key not in ("step", "timestamp")]
        assert values == list(written.dropna()), (row, written)
    print(f"trackio.import_csv: {len(imported)} rows agree")


with tempfile.TemporaryDirectory() as folder:
    run = train(pathlib.Path(folder))
    compare(run)
    compare_table(run)
    import_table(run, pathlib.Path(folder))
