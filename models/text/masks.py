"""Attention masks as numbers that are added to the scores: 0 where a token is seen.

transformers 5.23 makes masks with index functions that depend on the attention implementation and on whether it
is being traced; ready four-dimensional ones are taken as they are.
"""

import torch
from torch import Tensor

# exp(-65504) is 0 in every format, and half precision holds the number itself: transformers' own, the smallest
# float32, would be infinite there, and a sum with another one not a number.
HIDDEN = -65504.0


def causal_mask(tokens: int) -> Tensor:
    """[1, 1, tokens, tokens] float32: each token sees itself and those before it."""
    position = torch.arange(tokens)
    return torch.where(position[None, :] <= position[:, None], 0.0, HIDDEN)[None, None]


def padding_mask(attention_mask: Tensor) -> Tensor:
    """[texts, tokens] of 1 and 0 -> [texts, 1, 1, tokens] float32: no token sees padding."""
    return ((1.0 - attention_mask.float()) * HIDDEN)[:, None, None, :]
