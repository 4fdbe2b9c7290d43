"""What the training of `emoji-flux` is told: one frozen dataclass a stage, written beside its checkpoints as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "emoji-flux"
AUTOENCODER = Path(__file__).parents[1] / "checkpoints" / "emoji-dit" / "vae"

# FluxPipeline's own defaults, which the shipped model is made for.
SEQUENCE_LENGTH = 512
# What the T5 tokenizer says of itself: it holds every caption. The amount of padding, which training varies, changes
# details alone: 512 tokens draw as well at six times the work. The compiler takes as many as the tokenizer says
# (models/flux/reference.py).
T5_TOKENS = 64
GUIDANCE = 3.5
NUM_STEPS = 28


@dataclass(frozen=True)
class NetworkConfig:
    """The three networks that are trained: 2 million parameters, so that 16 MB hold both shipped models."""

    heads: int = 4
    head_dim: int = 32
    rope_axes: tuple[int, int, int] = (8, 12, 12)
    double_blocks: int = 1
    single_blocks: int = 4
    text_width: int = 48  # of both encoders
    text_layers: int = 2
    text_heads: int = 3
    clip_vocabulary: int = 1_024
    clip_length: int = 24
    t5_vocabulary: int = 1_200
    t5_feed_forward: int = 128


@dataclass(frozen=True)
class LoopConfig:
    """How one stage walks: Muon for the matrices of the blocks, AdamW for the rest, an average of the weights."""

    steps: int
    decay_steps: int  # linear decay to zero over the last steps
    warmup_steps: int
    learning_rate: float
    matrix_learning_rate: float  # of Muon
    ema_decay: float
    seed: int
    batch: int = 64
    gradient_clip: float = 1.0
    log_every: int = 50
    save_every: int = 500
    grid_every: int = 1_000


@dataclass(frozen=True)
class DataConfig:
    """What a batch is made of."""

    caption_dropout: float = 0.1
    recoloured: float = 0.25  # how often a picture that can be recoloured is shown in another colour
    class_balance: float = 0.5  # 0 draws all pictures alike, 1 all subgroups alike (a seventh of the emoji are flags)
    text_tokens: int = 13  # longer captions are cut; one more token stands for all the padding


@dataclass(frozen=True)
class GuidanceConfig:
    """Stage B distils classifier-free guidance between these scales."""

    least: float = 1.0
    most: float = 5.0


FLOW = LoopConfig(
    steps=17_000,
    decay_steps=8_000,
    warmup_steps=300,
    learning_rate=1e-3,
    matrix_learning_rate=2e-3,
    ema_decay=0.9995,
    seed=0,
)
DISTILLATION = LoopConfig(
    steps=2_500,
    decay_steps=2_000,
    warmup_steps=100,
    learning_rate=5e-4,
    matrix_learning_rate=1e-3,
    ema_decay=0.999,
    seed=1,
)
