"""What the modules and graphs of a pipeline are given where they are compared: drawn once, from one stored seed."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from export.examples import TEXTS, conditioning_example, encoded_texts, numpy_inputs, parity_size, token_inputs
from export.reach import Reach
from export.step import FusedStep
from models.latent_diffusion import LatentDiffusion

SEED = 20261
BATCH = 2
_TIMESTEP = 501.0  # one for all rows: within a step they are equal, and hoisting builds on it


@dataclass(frozen=True)
class Drawn:
    """Inputs of all modules, in the order of their parameters, by the graph's name; and the texts, encoded by torch."""

    inputs: Mapping[str, Mapping[str, np.ndarray]]
    encoded: Mapping[str, Tensor]  # output of a text encoder: [texts, …], for the texts of its inputs

    def for_phases(self) -> dict[str, Mapping[str, np.ndarray]]:
        """The inputs with the mean of the guidance branches in place of guidance.

        (4, -3) multiplies the rounding of a branch by five: between two correct float32 graphs of the shipped
        model that is 1.0e-6 against 2.9e-7 of the mean. A phase is held to what it does to the denoiser.
        """
        denoise = self.inputs["denoise"]
        branches = len(denoise["guidance_weights"])
        weights = np.full(branches, 1 / branches, np.float32)
        return {**self.inputs, "denoise": {**denoise, "guidance_weights": weights}}


def drawn_inputs(step: FusedStep, reach: Reach, first_timestep: float, encode: bool = False) -> Drawn:
    """Two images in two guidance branches; for a denoiser beyond `reach` one image at the loop's first step."""
    model = step.model
    generator = torch.Generator().manual_seed(SEED)
    alone = reach.is_beyond("denoise")
    slots, shape, size = 3, (1, 1) if alone else (2, BATCH), parity_size(model)
    history = torch.randn(slots, shape[1], model.latent_shape[0], *size, generator=generator).numpy()
    row = np.array([0.6, -0.64, 0.48], np.float32)  # unit length: what the denoiser sees has unit variance
    scale = max(model.default_cfg_scale, 2.0)  # two branches, also of a model that is not guided by default
    inputs: dict[str, Mapping[str, np.ndarray]] = {}
    encoded: dict[str, Tensor] = {}
    for encoder in model.text_encoders:
        texts = TEXTS[:1] if reach.is_beyond(encoder.name) else TEXTS
        inputs[encoder.name] = numpy_inputs(token_inputs(encoder, texts))
        encoded |= encoded_texts(encoder, texts)
    inputs["denoise"] = {
        "history": history,
        "input_row": row,
        "timestep": np.full(shape, first_timestep if alone else _TIMESTEP, np.float32),
        "guidance_weights": np.ones(1, np.float32) if alone else np.array([scale, 1.0 - scale], np.float32),
        **numpy_inputs(conditioning_example(model, shape, size, encoded, SEED)),
    }
    inputs["decode"] = {"history": history, "output_row": row}
    if encode:
        noise = torch.randn(1, model.latent_shape[0], *size, generator=generator).numpy()
        inputs["encode"] = {"image": picture(model, size), "noise": noise}
    return Drawn(inputs, encoded)


def picture(model: LatentDiffusion, size: tuple[int, int]) -> np.ndarray:
    """A smooth synthetic picture for latents of `size` (H, W): float32 [1, 3, height, width] in [0, 1]."""
    factor = model.image_shape[1] // model.latent_shape[1]
    rows, columns = np.mgrid[0 : factor * size[0], 0 : factor * size[1]].astype(np.float32) / (factor * max(size))
    waves = [np.sin(7 * rows + 3 * columns), np.cos(5 * columns - 2 * rows), np.sin(11 * rows * columns)]
    return np.stack([0.5 + 0.4 * wave for wave in waves])[None].astype(np.float32)
