"""DiT in the compiler's own fused step: what hoisting is measured on with guidance and history inside the graph.

Legend: k = guidance branches, b = batch, C/H/W = latent. Nothing is built on import.
"""

from collections.abc import Mapping

import diffusers
import torch
from torch import Tensor, nn
from torch.export import Dim

from benchmarks.hoisting_denoiser import LOOP, PROMPT, SCHEDULE, Denoiser
from export.step import DenoiseStep
from models.dit.modules import DiTDenoiser
from models.timesteps import store_timestep_frequencies


class DiTStep(nn.Module):
    """The compiler's own fused step (history, k branches, guidance) around a DiT."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        store_timestep_frequencies(net)
        self.step = DenoiseStep(DiTDenoiser(net), guided_channels=4, conditioning=("class_labels",))

    def forward(
        self, history: Tensor, input_row: Tensor, timestep: Tensor, guidance_weights: Tensor, class_labels: Tensor
    ) -> Tensor:
        """As DenoiseStep: history [slots, b, C, H, W] -> [b, C, H, W]."""
        prediction: Tensor = self.step(history, input_row, timestep, guidance_weights, class_labels)
        return prediction


def dit_net(*, heads: int, head_dim: int, layers: int, size: int, learned_sigma: bool = True) -> nn.Module:
    """DiT (arXiv 2212.09748) with patches of 2, for latents [4, size, size]."""
    net: nn.Module = diffusers.DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=head_dim, num_layers=layers, sample_size=size, patch_size=2,
        in_channels=4, out_channels=8 if learned_sigma else 4, num_embeds_ada_norm=1000,
    )  # fmt: skip
    return net


def dit(name: str, *, heads: int, head_dim: int, layers: int, size: int, learned_sigma: bool = True) -> Denoiser:
    """A DiT as the compiler fuses it, with guidance, for one image."""
    slots, branches, batch = Dim("slots"), Dim("guidance_branches"), Dim("batch")

    def make() -> nn.Module:
        net = dit_net(heads=heads, head_dim=head_dim, layers=layers, size=size, learned_sigma=learned_sigma)
        return DiTStep(net)

    def examples() -> Mapping[str, Tensor]:
        return {
            "history": torch.randn(3, 5, 4, size, size),
            "input_row": torch.randn(3),
            "timestep": torch.full((2, 5), 500.0),
            "guidance_weights": torch.tensor([4.0, -3.0]),
            "class_labels": torch.randint(0, 1000, (2, 5)),
        }

    return Denoiser(
        name, make, examples,
        dynamic={
            "history": {0: slots, 1: batch}, "input_row": {0: slots}, "timestep": {0: branches, 1: batch},
            "guidance_weights": {0: branches}, "class_labels": {0: branches, 1: batch},
        },
        classes={
            "history": LOOP, "input_row": LOOP, "timestep": SCHEDULE, "guidance_weights": PROMPT,
            "class_labels": PROMPT,
        },
        dims={"slots": 1 + 28, "guidance_branches": 2, "batch": 1},
    )  # fmt: skip
