"""Small models of five architectures with random weights, fused with history and guidance, and traced.

Legend: slots = 4, k = 2 guidance branches, b = 2, x [b, C, 16, 16]. Classes and forward conventions are diffusers'.
"""

import contextlib
import io
from collections.abc import Callable

import diffusers
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

_BATCH, _BRANCHES = 2, 2


class Step(nn.Module):
    """Combination of the history, one denoiser in `k` branches, guidance."""

    def __init__(self, net: nn.Module, call: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.call = net, call

    def forward(
        self, history: Tensor, input_row: Tensor, timestep: Tensor, guidance: Tensor, condition: Tensor
    ) -> Tensor:
        branches, batch = timestep.shape
        x = (input_row @ history.flatten(1)).unflatten(0, history.shape[1:])
        rows = x.expand(branches, *x.shape).flatten(0, 1)
        output = self.call(self.net, rows, timestep.flatten(), condition.flatten(0, 1))
        return (guidance @ output.unflatten(0, (branches, batch)).flatten(1)).unflatten(0, x.shape)


class Decode(nn.Module):
    """The last combination, the scale of the latents, the decoder, and the clamp."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, history: Tensor, output_row: Tensor) -> Tensor:
        latents = (output_row @ history.flatten(1)).unflatten(0, history.shape[1:])
        return self.vae.decode(latents / 0.18215).sample.clamp(-1, 1)


def _flux(net: nn.Module, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    rows, channels, height, width = x.shape
    packed = x.reshape(rows, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    places = torch.zeros(height // 2, width // 2, 3)
    places[..., 1] += torch.arange(height // 2)[:, None]
    places[..., 2] += torch.arange(width // 2)[None]
    output = net(
        hidden_states=packed.reshape(rows, height * width // 4, channels * 4),
        timestep=t / 1000,
        guidance=torch.full((rows,), 3.5),
        encoder_hidden_states=condition,
        pooled_projections=condition[:, 0, :32],
        txt_ids=torch.zeros(condition.shape[1], 3),
        img_ids=places.reshape(-1, 3),
    ).sample
    output = output.reshape(rows, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return output.reshape(rows, channels, height, width)


def _flux_net() -> nn.Module:
    return diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=2, num_single_layers=4, attention_head_dim=32, num_attention_heads=4,
        joint_attention_dim=64, pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip


def _large_flux_net() -> nn.Module:
    """Its image and text tokens enter 10^5 times larger, and stay so: every block adds to the residual stream."""
    net = _randomised(_flux_net())
    with torch.no_grad():
        for layer in (net.x_embedder, net.context_embedder):
            layer.weight.mul_(1e5)
    return net


def _dit_net() -> nn.Module:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=4,
        num_layers=4,
        sample_size=16,
        num_embeds_ada_norm=100,
    )


def _sd3_net() -> nn.Module:
    return diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, num_layers=4, attention_head_dim=32, num_attention_heads=4,
        joint_attention_dim=64, caption_projection_dim=128, pooled_projection_dim=32, out_channels=16,
        pos_embed_max_size=16, qk_norm="rms_norm",
    )  # fmt: skip


def _unet_net() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=16, layers_per_block=1, block_out_channels=(32, 64), cross_attention_dim=64, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def _vae() -> nn.Module:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64), layers_per_block=1, norm_num_groups=8,
    )  # fmt: skip


# name -> (network, its call, latent channels, shape of one row of the condition)
_STEPS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], int, tuple[int, ...]]] = {
    "dit": (_dit_net, lambda net, x, t, c: net(x, timestep=t, class_labels=c).sample, 4, ()),
    "sd3": (_sd3_net, lambda net, x, t, c: net(x, c, c[:, 0, :32], t).sample, 16, (12, 64)),
    "flux": (_flux_net, _flux, 16, (12, 64)),
    "flux-large": (_large_flux_net, _flux, 16, (12, 64)),
    "unet": (_unet_net, lambda net, x, t, c: net(x, t, c).sample, 4, (12, 64)),
}
MODELS = (*_STEPS, "vae")


def trace(name: str) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """The traced graph as torch leaves it (optimize=False), and one sample of its inputs."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    batch = torch.export.Dim("batch")
    module: nn.Module
    if name == "vae":
        module, channels = Decode(_randomised(_vae())), 4
        inputs = {"output_row": (torch.tensor([0.7, 0.2, 0.1, 0.0]), {})}
    else:
        make, call, channels, condition = _STEPS[name]
        module = Step(_randomised(make()), call)
        rows = (_BRANCHES, _BATCH, *condition)
        condition_value = torch.randn(rows, generator=draw) if condition else torch.randint(0, 99, rows, generator=draw)
        inputs = {
            "input_row": (torch.tensor([0.7, 0.2, 0.1, 0.0]), {}),
            "timestep": (torch.full((_BRANCHES, _BATCH), 500.0), {1: batch}),
            "guidance": (torch.tensor([2.0, -1.0]), {}),
            "condition": (condition_value, {1: batch}),
        }
    inputs = {"history": (torch.randn(4, _BATCH, channels, 16, 16, generator=draw), {1: batch}), **inputs}
    values = {key: value for key, (value, _) in inputs.items()}
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            module.eval(), tuple(values.values()), dynamo=True, opset_version=18, input_names=list(values),
            output_names=["prediction"], dynamic_shapes=tuple(dims for _, dims in inputs.values()), optimize=False,
            verbose=False,
        )  # fmt: skip
    assert program is not None
    return program.model, {key: value.numpy() for key, value in values.items()}


def _randomised(net: nn.Module) -> nn.Module:
    """adaLN-Zero and zero convolutions start at zero, and a zero hides every error."""
    draw = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        if not parameter.any():
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.02
    return net
