"""Inputs of a pipeline's modules that look like a request's: for the trace, and for every comparison.

Texts are encoded by the pipeline's own encoders, since numbers that no encoder returns would say little about half
precision.
"""

from collections.abc import Mapping

import numpy as np
import torch
from latentc import schema
from latentc.text import encode_texts, tokenizer_from_json
from torch import Tensor

from models.latent_diffusion import (
    CLASS_LABELS,
    GRID_COLUMNS,
    GRID_ROWS,
    GUIDANCE,
    LatentDiffusion,
    TextEncoder,
    TextRule,
)

TEXTS = (
    "a photograph of an astronaut riding a horse on the moon, golden hour, film grain",
    "",
    "three red apples and a green bottle on a wooden table",
    "Großmutters Küche: 日本の朝ごはん 🍳",
)
_COMMON_GUIDANCE = 3.5
PARITY_PIXELS = 256  # comparisons are made at no larger size than this: a whole trajectory runs, on a CPU


def text_rule(rule: TextRule) -> schema.TextRule:
    """A family's rule as the manifest holds it."""
    return schema.TextRule(length=rule.length, prefix=rule.prefix, lower_strip=rule.lower_strip)


def token_inputs(encoder: TextEncoder, texts: tuple[str, ...]) -> dict[str, Tensor]:
    """What the encoder's module takes for `texts`, in the order of its forward: int64 [texts, tokens]."""
    tokenizer = tokenizer_from_json(encoder.tokenizer.to_str().encode(), encoder.name)
    tokens = encode_texts(tokenizer, texts, text_rule(encoder.prompt), encoder.pad_id)
    inputs = {"input_ids": torch.from_numpy(tokens.ids)}
    return inputs | ({"attention_mask": torch.from_numpy(tokens.mask)} if encoder.takes_mask else {})


def encoded_texts(encoder: TextEncoder, texts: tuple[str, ...]) -> dict[str, Tensor]:
    """All outputs of a text encoder for `texts`, by torch: name -> [texts, …]."""
    with torch.no_grad():
        outputs = encoder.module(*token_inputs(encoder, texts).values())
    return dict(zip(encoder.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))


def conditioning_example(
    model: LatentDiffusion, shape: tuple[int, int], size: tuple[int, int], texts: Mapping[str, Tensor], seed: int
) -> dict[str, Tensor]:
    """The denoiser's conditioning for `shape` (branches, batch) and latents of `size` (H, W): name -> [k, b, …].

    `texts` holds some rows of each text encoder's output; they are dealt out in turn.
    """
    generator = torch.Generator().manual_seed(seed)
    multiple = model.sizes.multiple if model.sizes is not None else 1
    found: dict[str, Tensor] = {}
    for name in model.conditioning:
        if name == CLASS_LABELS:
            assert model.labels is not None, "a denoiser of labels comes with its labels"
            numbers = torch.tensor(sorted({*model.labels.numbers.values(), model.labels.null}))
            found[name] = numbers[torch.randint(len(numbers), shape, generator=generator)]
        elif name == GUIDANCE:
            found[name] = torch.full(shape, _COMMON_GUIDANCE)
        elif name in (GRID_ROWS, GRID_COLUMNS):
            found[name] = torch.arange(size[name == GRID_COLUMNS] // multiple, dtype=torch.float32)
        else:
            rows = texts[name]
            dealt = torch.arange(shape[0] * shape[1]) % len(rows)
            found[name] = rows[dealt].unflatten(0, shape)
    return found


def parity_size(model: LatentDiffusion) -> tuple[int, int]:
    """H and W of the latents that comparisons are made at: small, and not square where the family allows that."""
    _, height, width = model.latent_shape
    if model.sizes is None:
        return height, width
    factor = model.image_shape[1] // height
    multiple, least = model.sizes.multiple, model.sizes.minimum
    cap = max(least, PARITY_PIXELS // factor // multiple * multiple)
    height, width = min(height, cap), min(width, cap)
    if height - multiple >= least:
        return height - multiple, width
    return height, min(width + multiple, model.sizes.maximum)


def numpy_inputs(inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The same on the other side."""
    return {name: value.numpy() for name, value in inputs.items()}
