"""The peer of `lrpt generate`: a dense GPT in PyTorch that generates with a preallocated cache of keys and values, on the CPU.

    python benches/torch_generate.py --n-layer 4 --n-head 4 --n-embd 256 --vocab 4096 --tokens 1000

Same arithmetic as configs' `arch: gpt2` without biases; with `--rank R` every linear layer of a block is W = B A. It has a position for
every token, so that its window never moves: for texts longer than the block size of the model it is compared with, it does the less
work. Prints `tokens/s RATE` over all new tokens, the prompt's pass included, best and median of `--repeats` texts.
"""
import argparse
import statistics
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name, value in (("n-layer", 4), ("n-head", 4), ("n-embd", 256), ("vocab", 4096), ("rank", 0), ("threads", 2), ("prompt", 4), ("tokens", 1000),
                    ("samples", 1), ("repeats", 3)):
    p.add_argument("--" + name, type=int, default=value)
p.add_argument("--temperature", type=float, default=0.8)
p.add_argument("--compile", action="store_true")
a = p.parse_args()
torch.set_num_threads(a.threads)
torch.manual_seed(0)
C, D, LENGTH = a.n_embd, a.n_embd // a.n_head, a.prompt + a.tokens


def linear(n, m):
    if not a.rank:
        return nn.Linear(n, m, bias=False)
    return nn.Sequential(nn.Linear(n, a.rank, bias=False), nn.Linear(a.rank, m, bias=False))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(C, bias=False), nn.LayerNorm(C, bias=False)
        self.q, self.k, self.v, self.o = (linear(C, C) for _ in range(4))
        self.up, self.down = linear(C, 4 * C), linear(4 * C, C)

    def forward(self, x, cache, start):
        h = self.norm1(x)
        b, t, _ = h.shape
        heads = lambda y: y.view(b, t, a.n_head, D).transpose(1, 2)
        cache[0][:, :, start:start + t] = heads(self.k(h))
        cache[1][:, :, start:start + t] = heads(self.v(h))
        k, v = cache[0][:, :, :start + t], cache[1][:, :, :start + t]
        y = F.scaled_dot_product_attention(heads(self.q(h)), k, v, is_causal=t > 1)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, C))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(a.vocab, C), nn.Embedding(LENGTH, C)
        self.blocks = nn.ModuleList(Block() for _ in range(a.n_layer))
        self.norm = nn.LayerNorm(C, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, x, caches, start):
        h = self.tokens(x) + self.positions.weight[start:start + x.shape[1]]
        for block, cache in zip(self.blocks, caches):
            h = block(h, cache, start)
        return self.norm(h[:, -1]) @ self.tokens.weight.T


@torch.inference_mode()
def generate(step):
    caches = [[torch.zeros(a.samples, a.n_head, LENGTH, D) for _ in range(2)] for _ in range(a.n_layer)]
    new, start = torch.randint(a.vocab, (a.samples, a.prompt)), 0
    for _ in range(a.tokens):
        logits = step(new, caches, start)
        start += new.shape[1]
        new = torch.multinomial(torch.softmax(logits / a.temperature, -1), 1)


model = GPT().eval()
step = torch.compile(model, dynamic=True) if a.compile else model
generate(step)  # warm-up, and compilation
rates = []
for _ in range(a.repeats):
    begun = time.perf_counter()
    generate(step)
    rates.append(a.samples * a.tokens / (time.perf_counter() - begun))
print(f"torch {torch.__version__} rank {a.rank or 'dense'} tokens/s {max(rates):.1f} best {statistics.median(rates):.1f} median")
