#!/usr/bin/env python3
"""Models out of lrpt and in, checked with the real `transformers` and `peft`.

    python3 -m venv VENV && VENV/bin/pip install torch transformers peft
    cargo build --release --bins --examples
    VENV/bin/python tests/tools/interoperation.py

Trains small runs, exports them, loads each export with AutoModelForCausalLM and compares logits at
every position and greedy continuations token for token; makes random GPT-2 and Llama models with
transformers and compares their logits and losses with those of our import; adapters likewise, with
PeftModel; and the text and ids of conversations with those of tokenizer.apply_chat_template. Exits with 1 if anything disagrees.
"""

import json
import math
import pathlib
import subprocess
import sys
import tempfile

import peft
import tokenizers
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

ROOT = pathlib.Path(__file__).resolve().parents[2]
LRPT = ROOT / "target/release/lrpt"
LOGITS = ROOT / "target/release/examples/logits"
TOLERANCE = 1e-4
SPEC = """
name: small
seed: 5
device: cpu
model: {{n_layer: 2, n_head: 4, n_embd: 64, block_size: 32, bias: {bias}, weights: {weights}{model}}}
data: {{source: {{text: {{path: text.txt, val_fraction: 0.2}}}}, tokenizer: {tokenizer}}}
train: {{max_steps: 40, batch_size: 8, log_every: 20}}
schedule: {{cosine: {{warmup_steps: 4, final_ratio: 0.1}}}}
eval: {{every: 40, tokens: 1024}}
sample: {{tokens: 0}}
"""
UNTIED = ", n_inner: 100, tie_word_embeddings: false, layer_norm_epsilon: 1e-3"
LLAMA = ", arch: llama, rope_theta: 500, rms_norm_eps: 1e-3"
GROUPED = ", n_kv_head: 2, n_inner: 100"


def run(*arguments, cwd):
    done = subprocess.run([str(a) for a in arguments], cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{arguments}\n{done.stderr}")
    return done.stdout


def ours(kind, path, tokens, cwd):
    lines = run(LOGITS, kind, path, ",".join(map(str, tokens)), cwd=cwd).splitlines()
    return torch.tensor([json.loads(line) for line in lines])


def theirs(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


def greedy(logits_of, tokens, count):
    tokens = list(tokens)
    for _ in range(count):
        tokens.append(int(logits_of(tokens)[-1].argmax()))
    return tokens


failures = 0


def check(what, difference, tolerance, same=True):
    global failures
    good = difference <= tolerance and same
    failures += not good
    print(f"{'ok  ' if good else 'FAIL'} {what}: largest difference {difference:.2e}")


def exported(place, name, weights, bias, tokenizer, *flags, tolerance=TOLERANCE, model=""):
    bias = str(bias).lower()
    spec = SPEC.format(weights=weights, bias=bias, tokenizer=tokenizer, model=model)
    (place / "spec.yaml").write_text(spec)
    run(LRPT, "train", "spec.yaml", "--run-dir", name, cwd=place)
    out = place / f"{name}-hf"
    run(LRPT, "export", name, "--to", out, *flags, cwd=place)
    factored = "--factored" in flags
    model = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, trust_remote_code=factored
    ).eval()
    library = AutoTokenizer.from_pretrained(out, trust_remote_code=factored)
    text = "the rank of a matrix grows\nand its tail is small"
    tokens = library(text)["input_ids"][:24]
    assert library.decode(tokens) == text[: len(library.decode(tokens))], library.decode(tokens)
    mine, other = ours("run", name, tokens, place), theirs(model, tokens)
    same = True
    if tolerance == TOLERANCE:
        a = greedy(lambda t: ours("run", name, t, place), tokens, 8)
        b = greedy(lambda t: theirs(model, t), tokens, 8)
        same = a == b
    check(f"export {name}", (mine - other).abs().max().item(), tolerance, same)
    if tolerance == TOLERANCE:
        back = ours("hf", out, tokens, place)
        # Dense weights come back bit for bit; a product of factors adds up in another order.
        bound = 0.0 if weights == "dense" else 1e-5
        check("  and in again", (mine - back).abs().max().item(), bound)


def loss(logits, tokens):
    return torch.nn.functional.cross_entropy(logits[:-1].double(), torch.tensor(tokens[1:])).item()


def imported(place, name, model, dtype=torch.float32):
    # Biases and norms start at 0 and 1, which would hide a wrong order.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    folder = place / name
    shard_size = "50KB" if name.endswith("sharded") else "5GB"
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = [3, 96, 0, 41, 41, 7, 8, 12, 90, 55]
    mine, other = ours("hf", folder, tokens, place), theirs(model, tokens)
    check(f"import {name}", (mine - other).abs().max().item(), TOLERANCE)
    with torch.no_grad():
        batch = torch.tensor([tokens])
        expected = model(batch, labels=batch).loss.item()
    found = loss(mine, tokens)
    check(f"  its loss {found:.6f}", abs(found - expected), 1e-5)


def returned(place, name, model):
    """A model made there, in and out again without a step, has the same numbers bit for bit."""
    folder, out = place / name, place / f"{name}-out"
    model.save_pretrained(folder)
    spec = SPEC.format(weights="dense", bias="true", tokenizer="bytes", model="")
    shape = next(line for line in spec.splitlines() if line.startswith("model:"))
    spec = spec.replace(shape, f"init: {{hf: {folder}}}")
    (place / "spec.yaml").write_text(spec)
    run(LRPT, "train", "spec.yaml", "--run-dir", f"{name}-run", "--stop-after", "0", cwd=place)
    run(LRPT, "export", f"{name}-run", "--to", out, cwd=place)
    ours = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    check(f"in and out {name}, {len(theirs)} tensors", 0.0, 0.0, same)


def headless(place):
    """A folder of the model without its head, whose names leave out `transformer.`."""
    model = gpt2()
    model.transformer.save_pretrained(place / "headless")
    tokens = [3, 96, 0, 41, 7]
    mine = ours("hf", place / "headless", tokens, place)
    check("import headless", (mine - theirs(model, tokens)).abs().max().item(), TOLERANCE)


def gpt2(**settings):
    torch.manual_seed(3)
    sizes = {"vocab_size": 97, "n_positions": 24, "n_embd": 48, "n_layer": 3, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**{**sizes, **settings})).eval()


def llama(**settings):
    torch.manual_seed(4)
    config = LlamaConfig(
        **{
            "vocab_size": 97,
            "max_position_embeddings": 24,
            "hidden_size": 48,
            "intermediate_size": 100,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "initializer_range": 0.1,
            "bos_token_id": 0,
            "eos_token_id": 0,
            **settings,
        }
    )
    return LlamaForCausalLM(config).eval()


STILL = [
    "--set", "init={init}", "--set", "model.weights=dense", "--set", "train.max_steps=1",
    "--set", "optimizer.dense.adamw.learning_rate=1e-12",
]  # fmt: skip


def adapted(place, name, weights, *flags, arch="gpt2", untied=()):
    """Adapts an own dense run; its adapter in PEFT on the exported base, merged, and back here.

    `untied` says that the head is no longer the table of tokens then."""
    base, source = place / f"base-{arch}-hf", f"base-{arch}"
    flags = [*flags, "--set", f"model.arch={arch}"]
    if not base.exists():
        spec = SPEC.format(weights="dense", bias="true", tokenizer="bytes", model="")
        (place / "base.yaml").write_text(spec)
        run(LRPT, "train", "base.yaml", "--run-dir", source, *flags[-2:], cwd=place)
        run(LRPT, "export", source, "--to", base, cwd=place)
    spec = SPEC.format(weights=weights, bias="true", tokenizer="bytes", model="")
    (place / "spec.yaml").write_text(spec)
    run(LRPT, "train", "spec.yaml", "--run-dir", name, "--set", f"init={{hf: {base}}}", *flags, cwd=place)
    adapter, whole = place / f"{name}-peft", place / f"{name}-merged"
    run(LRPT, "export", name, "--to", adapter, cwd=place)
    run(LRPT, "export", name, "--to", whole, "--merge", cwd=place)
    tokens = list(b"the rank of a matrix ")
    mine = ours("run", name, tokens, place)
    bare = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    moved = (mine - theirs(bare.eval(), tokens)).abs().max().item()
    assert moved > 0.05, f"{name}: the adapter changes logits by {moved} only"
    model = PeftModel.from_pretrained(bare, adapter).eval()
    same = greedy(lambda t: ours("run", name, t, place), tokens, 8) == greedy(
        lambda t: theirs(model, t), tokens, 8
    )
    check(f"PEFT loads {name}", (mine - theirs(model, tokens)).abs().max().item(), TOLERANCE, same)
    model = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32).eval()
    check(f"  {name} merged", (mine - theirs(model, tokens)).abs().max().item(), TOLERANCE)
    init = f"{{peft: {{adapter: {adapter}}}}}"
    still = [flag.format(init=init) for flag in STILL]
    run(LRPT, "train", "spec.yaml", "--run-dir", f"{name}-back", *still, *flags[-2:], *untied, cwd=place)
    back = ours("run", f"{name}-back", tokens, place)
    check("  and in again", (mine - back).abs().max().item(), 1e-4)


def adapter_of_peft(place, name, arch="gpt2", untied=(), **settings):
    """A random adapter made there loads here."""
    torch.manual_seed(7)
    base = place / f"base-{arch}-hf"
    bare = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(bare, LoraConfig(fan_in_fan_out=arch == "gpt2", **settings)).eval()
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if "lora_B" in part:
                parameter.copy_(0.05 * torch.randn_like(parameter))
    folder = place / name
    model.save_pretrained(folder)
    spec = SPEC.format(weights="dense", bias="true", tokenizer="bytes", model="")
    (place / "spec.yaml").write_text(spec)
    init = f"{{peft: {{adapter: {folder}, base: {base}}}}}"
    still = [*(flag.format(init=init) for flag in STILL), "--set", f"model.arch={arch}", *untied]
    run(LRPT, "train", "spec.yaml", "--run-dir", f"{name}-run", *still, cwd=place)
    tokens = list(b"the rank of a matrix ")
    mine = ours("run", f"{name}-run", tokens, place)
    check(f"import {name}", (mine - theirs(model, tokens)).abs().max().item(), TOLERANCE)


def adapters(place):
    fast = "optimizer.low_rank={dlra: {learning_rate: 3e-2}}"
    changing = "rank={tolerance: {tau: 0.3, min_rank: 1, grow_every: 8, settle: 4, grow_by: 4, start: 4}}"
    adapted(place, "adapter-all", "{adapter: {rank: 8}}", "--set", fast)
    adapted(
        place, "adapter-ranks", "{adapter: {rank: 6, targets: {q: 4, v: 6, down: 8}}}",
        "--set", fast, "--set", changing,
    )  # fmt: skip
    adapted(
        place, "adapter-blocks", "{adapter: {rank: 6, layers: [{q: 0, k: 0, up: 0}, {q: 2, down: 0}]}}",
        "--set", fast,
    )  # fmt: skip
    lora = "optimizer.low_rank={adamw: {learning_rate: 1e-2}}"
    adapted(
        place, "lora-blocks", "{adapter: {rank: 8, alpha: 16, form: lora, layers: [{v: 0, o: 4}]}}",
        "--set", lora,
    )  # fmt: skip
    adapted(place, "lora", "{adapter: {rank: 8, alpha: 16, form: lora}}", "--set", lora)
    adapter_of_peft(place, "peft-default", r=4, lora_alpha=12, target_modules=["c_attn"])
    adapter_of_peft(
        place, "peft-patterns", r=4, lora_alpha=8, use_rslora=True,
        target_modules=["c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
        rank_pattern={"h.1.attn.c_attn": 7}, alpha_pattern={"h.1.attn.c_attn": 5},
    )  # fmt: skip
    some = "{adapter: {rank: 6, targets: {q: 4, k: 6, gate: 6, down: 8}}}"
    adapted(place, "llama-ranks", some, "--set", fast, "--set", changing, arch="llama")
    whole = "{adapter: {rank: 8, alpha: 16, form: lora}}"
    adapted(place, "llama-lora", whole, "--set", lora, arch="llama")
    adapter_of_peft(
        place, "peft-llama", "llama", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"]
    )
    # Beside the head, which is the table of tokens in the one base and a matrix of its own in the other.
    untied = ["--set", "model.tie_word_embeddings=false"]
    adapted(
        place, "adapter-head", "{adapter: {rank: 6, head: 5, targets: [q, down]}}", "--set", fast,
        untied=untied,
    )  # fmt: skip
    alone = "{adapter: {rank: 4, head: 4, alpha: 8, form: lora, targets: []}}"
    adapted(place, "llama-head", alone, "--set", lora, arch="llama")
    adapter_of_peft(
        place, "peft-head", r=4, lora_alpha=8, target_modules=["c_attn", "lm_head"],
        rank_pattern={"lm_head": 6}, untied=untied,
    )  # fmt: skip
    adapter_of_peft(place, "peft-llama-head", "llama", r=4, lora_alpha=8, target_modules=["lm_head", "o_proj"])


CONVERSATION = [
    {"role": "user", "content": "the rank of\na matrix?"},
    {"role": "assistant", "content": "is small"},
    {"role": "user", "content": "and <|im_end|> large"},
    {"role": "assistant", "content": "or its tail"},
]
CHATML = """{%- for message in messages %}
    {{- bos_token + '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + eos_token + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- bos_token + '<|im_start|>assistant\n' }}{%- endif %}
"""


def of_conversations(place, name, tokenizer, template, flags=(), adapted=False):
    """A run on conversations goes out whole and as an adapter: apply_chat_template there gives the
    text and the ids that were trained on here."""
    source = f"{{train: [{place}/chat.jsonl], val: [{place}/chat.jsonl]{template}}}"
    text = "{text: {path: text.txt, val_fraction: 0.2}}"
    spec = SPEC.format(weights="dense", bias="false", tokenizer=tokenizer, model=LLAMA)
    spec = spec.replace(text, f"{{instructions: {source}}}").replace("block_size: 32", "block_size: 128")
    spec = spec.replace("eval: {every: 40", "eval: {every: 2").replace("max_steps: 40", "max_steps: 2")
    (place / "chat.yaml").write_text(spec.replace("warmup_steps: 4", "warmup_steps: 0"))
    run(LRPT, "train", "chat.yaml", "--run-dir", name, *flags, cwd=place)
    ids = json.loads(run(LOGITS, "data", place / name / "plan.yaml", cwd=place))
    whole = (f"{name}-whole", ["--merge"] if adapted else [])
    for folder, options in [whole, (f"{name}-adapter", [])] if adapted else [whole]:
        run(LRPT, "export", name, "--to", folder, *options, cwd=place)
        library = AutoTokenizer.from_pretrained(place / folder)
        rendered = library.apply_chat_template(CONVERSATION, tokenize=False)
        theirs = library.apply_chat_template(CONVERSATION, return_dict=False)
        same = theirs == ids and library.decode(ids) == rendered
        check(f"chat template of {folder}, {len(ids)} tokens", 0.0, 0.0, same)
        if not same:
            print(f"{rendered!r}\n{library.decode(ids)!r}\n{theirs}\n{ids}")
        ends = json.loads((place / folder / "tokenizer_config.json").read_text())["eos_token"]
        if not folder.endswith("adapter"):
            generation = json.loads((place / folder / "generation_config.json").read_text())
            known = generation["eos_token_id"] == library.eos_token_id and library.eos_token == ends
            check(f"  its end {ends}", 0.0, 0.0, known)


def conversations(place):
    lines = json.dumps({"messages": CONVERSATION}) + "\n"
    (place / "chat.jsonl").write_text(lines)
    base = place / "chat-base"
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    names = ["<s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=names, initial_alphabet=alphabet, show_progress=False
    )
    inner.train([str(place / "text.txt")], trainer)
    library = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="<|im_end|>"
    )
    library.chat_template = CHATML
    library.save_pretrained(base)
    llama(vocab_size=len(library), max_position_embeddings=96, rms_norm_eps=1e-3).save_pretrained(base)
    of_base = [
        "--set", f"init={{hf: {base}}}", "--set", "model={arch: llama, n_layer: 3, n_head: 4, n_embd: 48, "
        "n_inner: 100, rms_norm_eps: 1e-3, block_size: 64, weights: {adapter: {rank: 4}}}",
    ]  # fmt: skip
    own = f"{{file: {base}/tokenizer.json}}"
    of_conversations(place, "chat-own", own, "", of_base, adapted=True)
    named = place / "named.jinja"
    named.write_text("\n{% for m in messages %}  {{ m.role[0] }}: {{ m.content }}{{ eos_token }}\n{% endfor %}")
    of_conversations(place, "chat-named", own, f", chat_template: {named}", of_base, adapted=True)
    of_conversations(place, "chat-default-bpe", "{bpe: {vocab_size: 300}}", "")
    of_conversations(place, "chat-default-bytes", "bytes", "")


def surprises(model, tokens, scored_from):
    """-ln p of the tokens from a place on, given all before them."""
    logits = theirs(model, tokens[:-1]).double().log_softmax(-1)
    return [-logits[at - 1, tokens[at]].item() for at in range(scored_from, len(tokens))]


def evaluated(place, name):
    """`lrpt eval` on texts and choices, against the same by transformers on the exported model."""
    model = AutoModelForCausalLM.from_pretrained(place / f"{name}-hf", dtype=torch.float32).eval()
    library = AutoTokenizer.from_pretrained(place / f"{name}-hf")
    block, stride = 32, 12
    for text in ["the rank", "the rank of a matrix", (place / "text.txt").read_text()[:700]]:
        (place / "scored.txt").write_text(text)
        tokens = library(text)["input_ids"]
        expected, scored = [], 0
        for start in range(0, len(tokens), stride):
            end = min(start + block, len(tokens) - 1)
            expected += surprises(model, tokens[start : end + 1], scored + 1 - start)
            scored = end
            if end == len(tokens) - 1:
                break
        options = ["--text", "scored.txt", "--stride", stride]
        found = json.loads(run(LRPT, "eval", name, *options, cwd=place))
        first = len(library.decode(tokens[:1]).encode())
        bits = sum(expected) / math.log(2) / (len(text.encode()) - first)
        check(f"eval --text of {len(tokens)} tokens", abs(found["loss"] - sum(expected) / len(expected)), 1e-5)
        check("  bits per byte", abs(found["bits_per_byte"] - bits), 1e-5, found["tokens"] == len(expected))
    words = "the rank of a matrix grows and shrinks when its tail is small or large".split()
    questions, right, right_per_byte = [], 0, 0
    for i in range(40):
        context = " ".join(words[(i * 7 + j * j) % len(words)] for j in range(3 + i % 9))
        choices = [" " + " ".join(words[(i + c * 5 + j) % len(words)] for j in range(1 + c)) for c in range(3)]
        gold = i % 3
        questions.append(json.dumps({"context": context, "choices": choices, "gold": gold}))
        given, likelihoods = len(library(context)["input_ids"]), []
        for choice in choices:
            tokens = library(context + choice)["input_ids"]
            beyond = max(0, len(tokens) - block - 1)
            likelihoods.append(-sum(surprises(model, tokens[beyond:], given - beyond)))
        right += likelihoods.index(max(likelihoods)) == gold
        per_byte = [x / len(choice.encode()) for x, choice in zip(likelihoods, choices)]
        right_per_byte += per_byte.index(max(per_byte)) == gold
    (place / "choices.jsonl").write_text("\n".join(questions))
    found = json.loads(run(LRPT, "eval", name, "--choices", "choices.jsonl", "--json", cwd=place))
    error = math.sqrt(right / 40 * (1 - right / 40) / 39)
    same = abs(found["acc_norm"] - right_per_byte / 40) < 1e-12
    check(f"eval --choices: {right} and {right_per_byte} of 40 right", abs(found["acc"] - right / 40), 1e-12, same)
    check("  its standard error", abs(found["acc_stderr"] - error), 1e-12)


def main():
    versions = f"transformers {transformers.__version__}, peft {peft.__version__}"
    print(f"{versions}, torch {torch.__version__}")
    words = "the rank of a matrix grows and shrinks when its tail is small or large".split()
    state, text = 12345, []
    for _ in range(6000):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        text.append(words[(state >> 33) % len(words)] + ("\n" if (state >> 20) % 9 == 0 else " "))
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        (place / "text.txt").write_text("".join(text))
        exported(place, "dense-bias-bytes", "dense", True, "bytes")
        exported(place, "dense-chars", "dense", False, "chars")
        exported(place, "low-rank-bpe", "{low_rank: {rank: 16}}", True, "{bpe: {vocab_size: 300}}")
        exported(place, "factored-bpe", "{factored: {rank: 8}}", False, "{bpe: {vocab_size: 300}}")
        evaluated(place, "dense-chars")
        evaluated(place, "low-rank-bpe")
        exported(place, "usv-chars", "{factored: {rank: 8, form: usv}}", True, "chars")
        exported(place, "sharded", "dense", True, "bytes", "--max-shard-size", "0")
        exported(place, "bf16", "dense", True, "bytes", "--dtype", "bf16", tolerance=0.05)
        exported(place, "f16", "dense", True, "bytes", "--dtype", "f16", tolerance=0.01)
        mixed = "{low_rank: {rank: 12, targets: {k: dense, down: 5}}}"
        exported(place, "kept-rank", mixed, True, "bytes", "--factored")
        exported(
            place, "llama-kept-rank", mixed, False, "bytes", "--factored", model=LLAMA + GROUPED
        )
        exported(place, "untied", "dense", True, "chars", model=UNTIED)
        fused = ", fused_qkv: true"
        joint = "{low_rank: {rank: 12, targets: {qkv: 18, down: 5}}}"
        exported(place, "fused", "dense", True, "bytes", model=fused)
        exported(place, "fused-kept-rank", joint, True, "bytes", "--factored", model=fused)
        exported(place, "llama-fused", joint, False, "chars", model=LLAMA + GROUPED + fused)
        low_rank, tied = "{low_rank: {rank: 16}}", ", tie_word_embeddings: true"
        exported(place, "llama", "dense", False, "bytes", model=LLAMA)
        exported(place, "llama-tied", "dense", False, "chars", model=LLAMA + tied)
        exported(place, "llama-low-rank-grouped", low_rank, False, "chars", model=LLAMA + GROUPED)
        exported(place, "llama-bias-bpe", low_rank, True, "{bpe: {vocab_size: 300}}", model=LLAMA)
        one_by_one = ("--max-shard-size", "0")
        exported(place, "llama-sharded", "dense", True, "bytes", *one_by_one, model=LLAMA + GROUPED)
        bf16 = ("--dtype", "bf16")
        exported(place, "llama-bf16", "dense", False, "bytes", *bf16, tolerance=0.05, model=LLAMA)
        imported(place, "random", gpt2())
        imported(place, "random-sharded", gpt2())
        imported(place, "random-untied", gpt2(tie_word_embeddings=False))
        imported(place, "random-wide", gpt2(n_inner=72, layer_norm_epsilon=1e-3))
        imported(place, "random-bf16", gpt2(), dtype=torch.bfloat16)
        imported(place, "random-f16", gpt2(), dtype=torch.float16)
        headless(place)
        imported(place, "random-llama", llama())
        imported(place, "random-llama-tied", llama(tie_word_embeddings=True, rms_norm_eps=1e-3))
        imported(place, "random-llama-grouped", llama(num_key_value_heads=2, rope_theta=500.0))
        imported(place, "random-llama-bias", llama(attention_bias=True, mlp_bias=True))
        imported(place, "random-llama-bf16", llama(), dtype=torch.bfloat16)
        imported(place, "random-llama-f16", llama(), dtype=torch.float16)
        imported(place, "random-llama-sharded", llama(num_key_value_heads=1))
        returned(place, "returned", gpt2(vocab_size=256, n_positions=32))
        returned(place, "returned-untied", gpt2(vocab_size=256, n_positions=32, tie_word_embeddings=False))
        sizes = {"vocab_size": 256, "max_position_embeddings": 32, "rms_norm_eps": 1e-3}
        returned(place, "returned-llama", llama(num_key_value_heads=2, **sizes))
        returned(place, "returned-llama-tied", llama(tie_word_embeddings=True, mlp_bias=True, attention_bias=True, **sizes))
        adapters(place)
        conversations(place)
    print(f"{failures} failed")
    sys.exit(1 if failures else 0)


main()
