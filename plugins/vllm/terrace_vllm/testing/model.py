# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Writes small Llama models with random weights: no download, and tokens that depend on the KV cache.

vLLM's own dummy weights are so small (1e-3) that a wrong KV cache would hardly change the output; these
are scaled like a trained model's, so that a wrong block changes the tokens (a test proves it).
"""

import dataclasses
import json
import os
from typing import List, Optional


@dataclasses.dataclass
class Shape:
    layers: int = 4
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 32
    inter: int = 256
    vocab: int = 512
    window: int = 0  # > 0: sliding-window layers, every `full_every`-th layer full
    full_every: int = 4

    def bytes_per_token(self, item: int = 2) -> int:
        return self.layers * 2 * self.kv_heads * self.head_dim * item


# 24 KiB of KV per token in bfloat16: large enough that recomputing costs seconds and loading does not.
BENCH = Shape(layers=12, hidden=1024, heads=16, kv_heads=8, head_dim=64, inter=2816, vocab=1000)


def write_model(directory: str, shape: Optional[Shape] = None, seed: int = 0,
                dtype: str = "bfloat16") -> str:
    """Writes config.json and model.safetensors into the directory; returns it. Imports torch."""
    import torch
    from safetensors.torch import save_file

    shape = shape or Shape()
    os.makedirs(directory, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    kind = getattr(torch, dtype)

    def matrix(rows: int, columns: int, scale: float) -> "torch.Tensor":
        return (torch.randn(rows, columns, generator=generator) * scale).to(kind)

    def linear(rows: int, columns: int) -> "torch.Tensor":
        return matrix(rows, columns, columns ** -0.5)

    ones = torch.ones(shape.hidden, dtype=kind)
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    tensors = {
        "model.embed_tokens.weight": matrix(shape.vocab, shape.hidden, 1.0),
        "model.norm.weight": ones.clone(),
        "lm_head.weight": linear(shape.vocab, shape.hidden),
    }
    for i in range(shape.layers):
        prefix = f"model.layers.{i}."
        for name, (rows, columns) in {
                "self_attn.q_proj": (q, shape.hidden), "self_attn.k_proj": (kv, shape.hidden),
                "self_attn.v_proj": (kv, shape.hidden), "self_attn.o_proj": (shape.hidden, q),
                "mlp.gate_proj": (shape.inter, shape.hidden), "mlp.up_proj": (shape.inter, shape.hidden),
                "mlp.down_proj": (shape.hidden, shape.inter)}.items():
            tensors[f"{prefix}{name}.weight"] = linear(rows, columns)
        tensors[prefix + "input_layernorm.weight"] = ones.clone()
        tensors[prefix + "post_attention_layernorm.weight"] = ones.clone()
    # Written beside and moved into place: an engine never reads half a file.
    path = os.path.join(directory, "model.safetensors")
    save_file(tensors, path + ".new", metadata={"format": "pt"})
    os.replace(path + ".new", path)
    with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as file:
        json.dump(_config(shape, dtype), file)
    return directory


def _config(shape: Shape, dtype: str) -> dict:
    config = dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=shape.hidden,
        intermediate_size=shape.inter, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim,
        vocab_size=shape.vocab, max_position_embeddings=32768, rms_norm_eps=1e-5, rope_theta=10000.0,
        hidden_act="silu", torch_dtype=dtype, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=False)
    if shape.window:
        kinds: List[str] = ["full_attention" if (i + 1) % shape.full_every == 0
                            else "sliding_attention" for i in range(shape.layers)]
        config.update(sliding_window=shape.window, layer_types=kinds)
    return config
