"""GPT-2 and Llama whose weight matrices keep their low rank.

A matrix W (m x n) of rank r is r of its own rows and the m - r others by those,
r (m + n - r) numbers: W[order] = [rows; rest @ rows]. Written by `lrpt export --factored`.
"""

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM


class InterpolatedLinear(nn.Module):
    """y = x W^T + b from r rows of W, without ever forming W."""

    def __init__(self, inputs, outputs, rank, bias):
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(rank, inputs))
        self.rest = nn.Parameter(torch.zeros(outputs - rank, rank))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        # Where each output stands among [those of rows; those of rest].
        self.register_buffer("place", torch.zeros(outputs, dtype=torch.int64))

    def forward(self, x):
        kept = nn.functional.linear(x, self.rows)
        rest = nn.functional.linear(kept, self.rest)
        y = torch.cat([kept, rest], dim=-1).index_select(-1, self.place)
        return y if self.bias is None else y + self.bias


class SideBySide(nn.Module):
    """Several layers on one input, their outputs one after the other: query, key, value."""

    def __init__(self, layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return torch.cat([layer(x) for layer in self.children()], dim=-1)


def _replace(model, layers):
    """Puts the layers that `layers` (of config.json) describes in their places.

    {name there: [[part, outputs, inputs, rank or null, bias], ...]}
    """
    for name, parts in layers.items():
        made = {}
        for part, outputs, inputs, rank, bias in parts:
            if rank is None:
                made[part] = nn.Linear(inputs, outputs, bias=bias)
            else:
                made[part] = InterpolatedLinear(inputs, outputs, rank, bias)
        parent, _, leaf = name.rpartition(".")
        layer = SideBySide(made) if len(made) > 1 else next(iter(made.values()))
        setattr(model.get_submodule(parent), leaf, layer)


class LrptGPT2Config(GPT2Config):
    model_type = "lrpt_gpt2"


class LrptLlamaConfig(LlamaConfig):
    model_type = "lrpt_llama"


class LrptGPT2LMHeadModel(GPT2LMHeadModel):
    config_class = LrptGPT2Config

    def __init__(self, config):
        super().__init__(config)
        _replace(self, config.lrpt_layers)
        self.post_init()


class LrptLlamaForCausalLM(LlamaForCausalLM):
    config_class = LrptLlamaConfig

    def __init__(self, config):
        super().__init__(config)
        _replace(self, config.lrpt_layers)
        self.post_init()
