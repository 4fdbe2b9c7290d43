"""A small classifier of real training pictures, which judges whether a drawn one shows the class that was asked for.

It never sees a drawn picture or a held-out one while it trains. B batch · S side in pixels · K classes
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from models.ldm.augment import augmented, generator_at
from models.ldm.journal import load_state, save_state
from models.ldm.pictures import Pictures
from models.ldm.schedule import learning_rate_factor, set_learning_rate


@dataclass(frozen=True)
class ClassifierConfig:
    """How the judge is trained."""

    channels: tuple[int, ...] = (32, 64, 96, 128)
    dropout: float = 0.2
    steps: int = 1_200
    warmup_steps: int = 100
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    label_smoothing: float = 0.1
    shift: int = 4
    seed: int = 0


class Classifier(nn.Module):
    """Convolutions with batch normalisation, each level at half the size: (B, 3, S, S) in [-1, 1] -> (B, K) logits."""

    def __init__(self, channels: tuple[int, ...], num_classes: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for following in channels:
            layers += [nn.Conv2d(width, following, 3, padding=1, bias=False), nn.BatchNorm2d(following), nn.ReLU()]
            layers += [nn.Conv2d(following, following, 3, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(following), nn.ReLU()]
            width = following
        self.body = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        pooled = self.body(pixels).mean(dim=(2, 3))  # (B, width)
        logits: torch.Tensor = self.head(self.dropout(pooled))
        return logits


def train_classifier(config: ClassifierConfig, pictures: Pictures, path: Path) -> Classifier:
    """Train on real pictures only, or load the finished weights at `path`."""
    torch.manual_seed(config.seed)
    classifier = Classifier(config.channels, len(pictures.classes), config.dropout)
    if (state := load_state(path)) is not None:
        classifier.load_state_dict(cast(dict[str, torch.Tensor], state["classifier"]))
        return classifier.eval()
    classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(classifier.parameters(), weight_decay=config.weight_decay)
    for step in tqdm(range(config.steps), desc="classifier"):
        factor = learning_rate_factor(step, config.warmup_steps, config.steps, config.steps)
        set_learning_rate(optimiser, config.learning_rate * factor)
        generator = generator_at(config.seed, step)
        chosen = torch.randint(len(pictures), (config.batch,), generator=generator)
        pixels = augmented(pictures.images[chosen], pictures.may_flip[chosen], config.shift, generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = classifier(pixels.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits.float(), pictures.labels[chosen], label_smoothing=config.label_smoothing)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    save_state({"classifier": classifier.state_dict()}, path)
    return classifier.eval()


@torch.no_grad()
def accuracy(classifier: Classifier, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of pictures (N, 3, S, S) in [-1, 1] whose most likely class is the label (N,)."""
    guesses = torch.cat([classifier(part).argmax(1) for part in pixels.split(128)])
    return float((guesses == labels).float().mean())
