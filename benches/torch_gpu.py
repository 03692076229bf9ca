"""The peer on a GPU: training steps of GPT-2's shape in PyTorch, eager and compiled, in f32 and with bf16 products, dense and W = B A.

    python benches/torch_gpu.py --batch-size 12 --accumulate 4

Prints a line for every form: tokens per second of the median step, the share of the peak of products measured in the same type, and the
most memory its tensors took. Attention is PyTorch's fused kernel, AdamW its fused one, and products with bf16 are under autocast, as
nanoGPT trains. f32 products are in full f32 on both sides (no TF32), which is PyTorch's default.
"""
import argparse
import statistics
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name, value in (("n-layer", 12), ("n-head", 12), ("n-embd", 768), ("block-size", 1024), ("batch-size", 12), ("accumulate", 4),
                    ("vocab", 32768), ("steps", 5), ("rank", 192)):
    p.add_argument("--" + name, type=int, default=value)
a = p.parse_args()
C = a.n_embd
device = torch.device("cuda")


def linear(n, m, rank):
    if not rank:
        return nn.Linear(n, m)
    return nn.Sequential(nn.Linear(n, rank, bias=False), nn.Linear(rank, m))


class Block(nn.Module):
    def __init__(self, rank):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.q, self.k, self.v, self.o = (linear(C, C, rank) for _ in range(4))
        self.up, self.down = linear(C, 4 * C, rank), linear(4 * C, C, rank)

    def forward(self, x):
        h = self.norm1(x)
        b, t, _ = h.shape
        heads = lambda y: y.view(b, t, a.n_head, C // a.n_head).transpose(1, 2)
        y = F.scaled_dot_product_attention(heads(self.q(h)), heads(self.k(h)), heads(self.v(h)), is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, C))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, rank):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(a.vocab, C), nn.Embedding(a.block_size, C)
        self.blocks = nn.ModuleList(Block(rank) for _ in range(a.n_layer))
        self.norm = nn.LayerNorm(C)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, x, y):
        h = self.tokens(x) + self.positions.weight
        for block in self.blocks:
            h = block(h)
        return F.cross_entropy((self.norm(h) @ self.tokens.weight.T).view(-1, a.vocab), y.view(-1))


def product_peak(dtype):
    """Operations per second of the best of two square products."""
    best = 0.0
    for n in (4096, 8192):
        left, right = (torch.rand(n, n, device=device).to(dtype) for _ in range(2))
        for _ in range(12):
            torch.cuda.synchronize()
            start = time.perf_counter()
            left @ right
            torch.cuda.synchronize()
            best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def measure(dtype, rank, compiled, peak):
    torch.manual_seed(0)
    torch.cuda.reset_peak_memory_stats()
    model = GPT(rank).to(device)
    step_fn = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(a.vocab, (a.batch_size, a.block_size + 1), device=device)
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    times = []
    for _ in range(a.steps + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        for _ in range(a.accumulate):
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
                loss = step_fn(x, y) / a.accumulate
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[2:])
    count = a.batch_size * a.block_size * a.accumulate
    weights = sum(q.numel() for name, q in model.named_parameters() if q.dim() == 2 and "positions" not in name)
    # Three products of a weight and a token, and attention's two of t × t at half the length (causal), forward and twice that backward.
    operations = count * (6 * weights + 6 * a.n_layer * C * a.block_size)
    print(f"torch {torch.__version__} {str(dtype)[6:]} {'rank ' + str(rank) if rank else 'dense'} {'compiled' if compiled else 'eager'}: "
          f"{count / seconds:.0f} tokens/s, {operations / seconds / peak:.3f} of {peak / 1e12:.0f} TFLOP/s, "
          f"memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB, step {seconds:.3f} s", flush=True)


peaks = {dtype: product_peak(dtype) for dtype in (torch.bfloat16, torch.float32)}
for dtype, rank, compiled in ((torch.bfloat16, a.rank, False), (torch.bfloat16, 0, False), (torch.bfloat16, 0, True), (torch.bfloat16, a.rank, True),
                              (torch.float32, 0, False), (torch.float32, 0, True)):
    measure(dtype, rank, compiled, peaks[dtype])
    torch.compiler.reset()
    torch.cuda.empty_cache()
