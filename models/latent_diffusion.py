"""What a family hands to the compiler: a trained pipeline as plain modules and plain numbers.

Legend for shapes: rows = guidance branches × batch, C/H/W = latent channels, height, width, f = the
autoencoder's factor, m = the multiple that H and W must be of, texts = prompts that are encoded at once.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor, nn

CLASS_LABELS = "class_labels"  # int64 [rows]
GUIDANCE = "guidance"  # float32 [rows]: the scale of a guidance-distilled model
GRID_ROWS = "grid_rows"  # float32 [H / m]: 0, 1, 2, …
GRID_COLUMNS = "grid_columns"  # float32 [W / m]: 0, 1, 2, …


class SourceError(ValueError):
    """A source directory that cannot be used: one line with what was found and what is possible."""


@dataclass(frozen=True)
class KnownOverflow:
    """Where half precision is known to overflow: a pattern that is searched in node and weight names, and why."""

    pattern: str
    reason: str


@dataclass(frozen=True)
class Labels:
    """Class labels by name; several names may share a number. `null` is the unconditional one."""

    numbers: Mapping[str, int]
    null: int


@dataclass(frozen=True)
class TextRule:
    """How a pipeline turns a prompt into token ids."""

    length: int  # ids are cut and padded to this many
    prefix: str = ""  # put before the prompt (SANA's instruction)
    lower_strip: bool = False  # str.lower().strip() of the prompt, before the prefix


@dataclass(frozen=True)
class TextEncoder:
    """One text encoder with its tokenizer.

    module     (input_ids int64 [texts, tokens][, attention_mask int64 [texts, tokens]]) -> one tensor
               [texts, …] float32 for each name of `outputs`
    tokenizer  the `tokenizers` object, special tokens included, without truncation and padding of its own
    """

    name: str  # the component's folder: text_encoder, text_encoder_2, …; the graph has the same name
    module: nn.Module
    outputs: tuple[str, ...]  # names of the denoiser's inputs
    tokenizer: tokenizers.Tokenizer
    pad_id: int
    prompt: TextRule
    negative: TextRule  # of the negative prompt; the same as `prompt` for all but SANA
    takes_mask: bool = False
    symbolic_length: bool = False  # where prompt and negative prompt have other lengths


@dataclass(frozen=True)
class SizeRange:
    """The sizes that one bundle draws: H and W are multiples of `multiple`, in latent pixels, bounds included."""

    multiple: int
    minimum: int
    maximum: int


def plain_timesteps(scheduler: SchedulerMixin, steps: int, height: int, width: int) -> None:
    """As most pipelines do it: the size does not matter."""
    scheduler.set_timesteps(steps)


@dataclass(frozen=True)
class LatentDiffusion:
    """A trained pipeline in float32 on the CPU, in eval mode.

    denoiser   (sample [rows, C, H, W], timestep [rows], *conditioning) -> [rows, C, H, W]: what the solver calls the
               model output, learned variance already split off. `conditioning` names its further inputs, in the order
               of its forward: CLASS_LABELS, GUIDANCE, GRID_ROWS, GRID_COLUMNS, and outputs of text encoders
               [rows, …]. Only what is used is named: an input without effect is an error of the compiler
    decoder    latents [batch, C, H, W] -> image [batch, 3, f·H, f·W] in [0, 1], scale and shift inside
    encoder    (image [batch, 3, f·H, f·W] in [0, 1], noise [batch, C, H, W]) -> latents [batch, C, H, W] as the
               denoiser sees them: a sample of the posterior (mean + deviation·noise), scale and shift inside
    """

    name: str
    family: str
    pipeline: str
    denoiser: nn.Module
    decoder: nn.Module
    conditioning: tuple[str, ...]
    scheduler: SchedulerMixin
    latent_shape: tuple[int, int, int]  # C, H, W at the default size
    image_shape: tuple[int, int, int]  # 3, f·H, f·W at the default size
    guided_channels: int  # guidance mixes the first ones; the others are the conditional branch's own
    default_steps: int
    default_cfg_scale: float
    labels: Labels | None = None  # exactly one of labels and text_encoders is given
    text_encoders: tuple[TextEncoder, ...] = ()
    zero_null: bool = False  # without a negative prompt the unconditional branch has zeros for text (SDXL)
    default_guidance: float | None = None  # of a guidance-distilled model
    guided: bool = True  # False: the pipeline has no classifier-free guidance, at any scale (LCM)
    sizes: SizeRange | None = None  # None: the default size only
    encoder: nn.Module | None = None  # where diffusers has an img2img pipeline of this family
    default_strength: float = 0.8  # of that pipeline
    strength_rounds_up: bool = False  # it runs int(N·strength) of N steps, or (flow pipelines) N - int(N - N·strength)
    set_timesteps: Callable[[SchedulerMixin, int, int, int], None] = plain_timesteps  # (scheduler, steps, H, W)
    timesteps_depend_on_size: bool = False  # FLUX's dynamic shift: one table for each size
    overflows: tuple[KnownOverflow, ...] = ()
    # The lists of blocks that add to one residual stream, by name, as they run; none: steps cannot be cached (U-Nets).
    blocks: tuple[str, ...] = ()

    @property
    def num_blocks(self) -> int:
        """How many blocks these lists hold."""
        pattern = re.compile(rf"(?:^|\.)(?:{'|'.join(map(re.escape, self.blocks))})\.\d+$")
        return sum(bool(pattern.search(name)) for name, _ in self.denoiser.named_modules()) if self.blocks else 0


@dataclass(frozen=True)
class ReferenceRequest:
    """One request as both sides of a comparison answer it. Either labels or prompts has one item for each image."""

    seed: int
    steps: int
    cfg_scale: float
    labels: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    negative_prompts: tuple[str, ...] | None = None  # one for each prompt; None: not given
    guidance: float | None = None
    height: int | None = None  # in pixels; None: the default size
    width: int | None = None
    init_image: np.ndarray | None = field(default=None, compare=False)  # float32 [height, width, 3] in [0, 1]
    strength: float = 0.8  # with an init_image


@dataclass(frozen=True)
class Lora:
    """One adapter file (arXiv 2106.09685), and how strongly it is applied."""

    file: Path
    scale: float


class Family(Protocol):
    """The adapter of one pipeline class. docs/adr/0004 says why it is a protocol and not a base class."""

    name: str
    pipeline: str

    def load(self, source: Path, loras: Sequence[Lora] = ()) -> LatentDiffusion:
        """Reads a diffusers directory and merges adapters; raises SourceError for one that is not of this family."""

    def reference_image(
        self, source: Path, scheduler: SchedulerMixin, request: ReferenceRequest, loras: Sequence[Lora] = ()
    ) -> Tensor:
        """Draws with the diffusers pipeline itself: float32 [batch, 3, height, width] in [0, 1].

        Noise comes from one `torch.Generator("cpu").manual_seed(request.seed)` for the whole batch.
        """
