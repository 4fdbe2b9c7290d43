"""What each stage of the training is told: one frozen dataclass a stage, written beside its checkpoints as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoints" / "emoji-dit"
NULL_CLASS = 1000  # DiTPipeline of diffusers (0.42) has this id of "no class" written into its code


@dataclass(frozen=True)
class DataConfig:
    """Where the pictures come from; `folder` None means Noto Color Emoji."""

    folder: Path | None = None
    size: int = 64


@dataclass(frozen=True)
class AutoencoderConfig:
    """Stage 1. Loss weights are those of LDM (arXiv 2112.10752, appendix G; the reference code's kl-f4 config)."""

    block_channels: tuple[int, ...] = (32, 64, 96)  # n levels: downsampling by 2^(n-1)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_groups: int = 8
    kl_weight: float = 1e-6
    perceptual_weight: float = 1.0
    lpips_vgg16: Path | None = None  # torchvision's vgg16 state dict; with `lpips_linear` it replaces the default term
    lpips_linear: Path | None = None  # vgg.pth of lpips v0.1
    adversarial: bool = True
    adversarial_start: int = 3_000
    adversarial_weight: float = 0.1  # LDM has 0.5, for pictures of 256 pixels and a larger decoder
    discriminator_channels: int = 32
    discriminator_layers: int = 2
    steps: int = 3_800
    decay_steps: int = 2_000  # linear decay to zero over the last steps
    warmup_steps: int = 100
    batch: int = 16
    learning_rate: float = 4e-4
    discriminator_learning_rate: float = 2e-4
    shift: int = 4  # pixels, each way
    seed: int = 0
    log_every: int = 50
    save_every: int = 250
    grid_every: int = 500


@dataclass(frozen=True)
class DecoderConfig:
    """Stage 1b: the decoder on noisy latents, with the losses of stage 1."""

    noise: float = 0.3  # the strongest, in deviations of a latent; each sample draws its own from 0 to this
    steps: int = 400
    warmup_steps: int = 50
    batch: int = 16
    learning_rate: float = 3e-4
    shift: int = 4
    seed: int = 1
    log_every: int = 25
    save_every: int = 100


@dataclass(frozen=True)
class TransformerConfig:
    """Stage 2: DiT (arXiv 2212.09748) on the latents of stage 1, v-prediction (docs/adr/0002-v-prediction.md)."""

    heads: int = 5
    head_dim: int = 32
    layers: int = 6
    patch: int = 2
    label_dropout: float = 0.1
    class_balance: float = 0.5  # 0 draws all pictures alike, 1 all classes alike (a seventh of the emoji are flags)
    noise_steps: int = 1_000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    steps: int = 7_200
    decay_steps: int = 4_200
    warmup_steps: int = 300
    batch: int = 64
    compile: bool = False  # torch.compile; needs a C++ compiler, 1.25 times as fast on two cores
    learning_rate: float = 1e-3
    matrix_learning_rate: float = 2e-3  # of Muon, which trains the blocks' matrices
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    cached_versions: int = 4  # how often each picture is encoded, each time with another draw of flip and shift
    # Pixels, each way. A shift that is no multiple of the latent's 4 pixels gives other latents altogether: with shifts
    # of 2 pixels 1,500 steps drew blots, and an hour is too short for the denoiser to learn every picture 25 times.
    shift: int = 0
    seed: int = 0
    log_every: int = 50
    save_every: int = 250
    grid_every: int = 1_000


def write_config(config: object, path: Path) -> None:
    """Write a stage's dataclass as JSON, so that a checkpoint says how it was made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = asdict(config)  # type: ignore[call-overload]
    path.write_text(json.dumps(fields, indent=2, default=str) + "\n", encoding="utf-8")
