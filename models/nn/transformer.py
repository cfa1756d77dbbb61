"""A pre-norm transformer block, over a set of tokens or from tokens to a memory."""

from __future__ import annotations

import math

from torch import Tensor, nn


class Block(nn.Module):
    """Attention over ``memory`` (or the tokens themselves), then a two-layer MLP; no positions: order says nothing."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm_attention = nn.LayerNorm(dim)
        self.norm_memory = nn.LayerNorm(dim)
        self.norm_mlp = nn.LayerNorm(dim)
        self.q, self.kv, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(
        self, tokens: Tensor, memory: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens ``(B, T, D)``, memory ``(B, M, D)`` -> tokens ``(B, T, D)``, attention ``(B, heads, T, M)``.

        ``mask`` ``(B, M)``: 1 where there is something to attend to.
        """
        normed = self.norm_attention(tokens)
        source = normed if memory is None else self.norm_memory(memory)
        k, v = self.kv(source).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in (self.q(normed), k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores - 1e4 * (1 - mask[:, None, None])
        attention = scores.softmax(dim=-1)
        tokens = tokens + self.out((attention @ v).transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.norm_mlp(tokens)), attention
