"""One small random pipeline of each class that the compiler knows, and what is drawn with it.

Weights are random; layout, schedulers and tokenizer files are those of the public checkpoints. Sources are stored as
large checkpoints are: in bfloat16, and sharded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from models.latent_diffusion import ReferenceRequest
from tests.pipelines.flux import make_flux
from tests.pipelines.latent_text_to_image import make_latent_text_to_image
from tests.pipelines.pixart import make_pixart
from tests.pipelines.sana import make_sana
from tests.pipelines.sd3 import make_sd3
from tests.pipelines.sdxl import make_sdxl, turbo_scheduler
from tests.pipelines.stable_diffusion import make_stable_diffusion
from tests.sources import write_random_dit

STEPS = 4
OVER_LONG = "a very long description of a red apple on a wooden table " * 60
PROMPTS = ("a red apple", "", "Äpfel, 日本の朝ごはん 🍳 ½ naïve", OVER_LONG)
NEGATIVES = ("blurry", "", "ugly, Ünicode ☂", "text")
STORED: Mapping[str, object] = {"dtype": torch.bfloat16, "max_shard_size": "40KB"}


@dataclass(frozen=True)
class Case:
    """A pipeline, the solvers and sizes (width, height) that it is drawn with, the first of each its own."""

    name: str
    make: Callable[..., Path]
    solvers: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    cfg_scale: float
    guidance: float | None = None
    img2img: bool = False
    labels: tuple[int, ...] = ()  # of a class-label model: one for each picture, in place of prompts
    options: Mapping[str, object] = field(default_factory=dict)  # of `make`

    def request(self, size: tuple[int, int]) -> ReferenceRequest:
        """Four prompts at once: a plain one, none, unicode, and one that is too long for every encoder."""
        return ReferenceRequest(
            seed=7,
            steps=STEPS,
            cfg_scale=self.cfg_scale,
            labels=self.labels,
            prompts=() if self.labels else PROMPTS,
            negative_prompts=NEGATIVES if self.cfg_scale > 1 and not self.labels else None,
            guidance=self.guidance,
            width=size[0],
            height=size[1],
        )

    def over_image(self, size: tuple[int, int], strength: float) -> ReferenceRequest:
        """The same over a synthetic picture."""
        width, height = size
        rows, columns = np.mgrid[0:height, 0:width].astype(np.float32) / max(size)
        picture = np.stack([rows, columns, 0.5 + 0.5 * np.sin(9 * rows * columns)], axis=-1).astype(np.float32)
        return replace(self.request(size), init_image=picture, strength=strength)


def make_dit(directory: Path, **_stored_as_it_is: object) -> Path:
    """A DiTPipeline, which the tests of the compiler have, too."""
    return write_random_dit(directory)


FLOW = ("euler", "heun")
CASES = (
    Case("flux-dev", make_flux, FLOW, ((32, 32), (48, 24)), 1.0, 3.5, img2img=True),
    Case("flux-schnell", make_flux, FLOW, ((32, 32), (24, 40)), 1.0, options={"schnell": True}),
    Case("sd3-medium", make_sd3, FLOW, ((32, 32), (48, 24)), 7.0, img2img=True),
    Case("sd3.5-without-t5", make_sd3, FLOW, ((32, 32), (40, 32)), 4.5, options={"sd35": True, "t5": False}),
    Case("pixart-alpha", make_pixart, ("dpmpp_2m", "unipc"), ((128, 128), (160, 128)), 4.5, options={
        "pipeline": "PixArtAlphaPipeline", "sample_size": 128, "as_published": True,
    }),
    Case("pixart-sigma", make_pixart, ("dpmpp_2m", "deis"), ((32, 32), (24, 40)), 4.5),
    Case("dit", make_dit, ("ddim", "dpmpp_2m"), ((32, 32),), 4.0, labels=(1, 7, 0, 1)),
    Case("sana", make_sana, ("dpmpp_2m", "unipc"), ((256, 256), (320, 192)), 4.5),
    Case("sd-1.5", make_stable_diffusion, ("pndm", "euler_a"), ((32, 32), (48, 32)), 7.5, img2img=True),
    Case("sd-2.1-v", make_stable_diffusion, ("ddim", "dpmpp_2m"), ((32, 32), (32, 48)), 7.5, options={"version": 2}),
    Case("lcm", make_stable_diffusion, ("lcm",), ((32, 32), (48, 32)), 1.0, 8.5, options={"distilled": True}),
    Case("sdxl", make_sdxl, ("euler", "dpmpp_2m_karras"), ((32, 32), (48, 32)), 5.0, img2img=True),
    Case("sdxl-turbo", make_sdxl, ("euler_a",), ((32, 32), (24, 40)), 0.0, options={"scheduler": turbo_scheduler()}),
    Case("ldm", make_latent_text_to_image, ("ddim", "lms"), ((32, 32), (48, 32)), 3.0),
)  # fmt: skip
TEXT_CASES = tuple(case for case in CASES if not case.labels)
BY_NAME = {case.name: case for case in CASES}
