"""Traces denoisers of five architectures, tiny and with random weights, with the classes of their inputs."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from torch.export import Dim

from export.hoist import InputClass

PROMPT, SCHEDULE, LOOP = InputClass.PROMPT, InputClass.SCHEDULE, InputClass.LOOP


@dataclass(frozen=True)
class Traced:
    """A traced graph, the classes of its inputs, and sizes of its symbolic dims to cut it for."""

    model: ir.Model
    inputs: Mapping[str, InputClass]
    dims: Mapping[str, int]


class FusedStep(nn.Module):
    """History's combination, the denoiser on all guidance branches at once, and guidance."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, history: Tensor, input_row: Tensor, timestep: Tensor, class_labels: Tensor, guidance_weights: Tensor
    ) -> Tensor:
        branches = timestep.shape[0]
        sample = (history * input_row.reshape(-1, 1, 1, 1, 1)).sum(0)  # [batch, channels, height, width]
        rows = sample.unsqueeze(0).expand(branches, -1, -1, -1, -1).reshape(-1, *sample.shape[1:])
        out = self.net(rows, timestep.reshape(-1), class_labels.reshape(-1), return_dict=False)[0]
        out = out[:, : sample.shape[1]].reshape(branches, -1, *sample.shape[1:])
        return (out * guidance_weights.reshape(-1, 1, 1, 1, 1)).sum(0)


def dit_step() -> Traced:
    net = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10,
    )  # fmt: skip
    slots, branches, batch = Dim("slots"), Dim("guidance_branches"), Dim("batch")
    model = traced(
        FusedStep(net),
        {
            "history": (torch.randn(3, 5, 4, 8, 8), {0: slots, 1: batch}),
            "input_row": (torch.randn(3), {0: slots}),
            "timestep": (torch.full((2, 5), 7.0), {0: branches, 1: batch}),
            "class_labels": (torch.randint(0, 10, (2, 5)), {0: branches, 1: batch}),
            "guidance_weights": (torch.randn(2), {0: branches}),
        },
    )
    inputs = {
        "history": LOOP, "input_row": LOOP, "timestep": SCHEDULE, "class_labels": PROMPT, "guidance_weights": PROMPT,
    }  # fmt: skip
    return Traced(model, inputs, {"slots": 3, "batch": 1, "guidance_branches": 2})


def flux() -> Traced:
    net = FluxTransformer2DModel(  # 1 + 2 blocks: the proportion of FLUX.1 (19 + 38)
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=32, num_attention_heads=8,
        joint_attention_dim=32, pooled_projection_dim=24, guidance_embeds=True, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    batch = Dim("batch")
    return denoiser(
        net,
        {
            "hidden_states": (torch.randn(3, 16, 16), {0: batch}),
            "encoder_hidden_states": (torch.randn(3, 7, 32), {0: batch}),
            "pooled_projections": (torch.randn(3, 24), {0: batch}),
            "timestep": (torch.full((3,), 0.5), {0: batch}),
            "img_ids": (torch.randn(16, 3), {}),
            "txt_ids": (torch.randn(7, 3), {}),
            "guidance": (torch.full((3,), 3.5), {0: batch}),
        },
    )


def sd3() -> Traced:
    net = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=64, pooled_projection_dim=24, out_channels=4,
        pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    batch = Dim("batch")
    return denoiser(
        net,
        {
            "hidden_states": (torch.randn(3, 4, 8, 8), {0: batch}),
            "encoder_hidden_states": (torch.randn(3, 7, 32), {0: batch}),
            "pooled_projections": (torch.randn(3, 24), {0: batch}),
            "timestep": (torch.full((3,), 500.0), {0: batch}),
        },
    )


def pixart() -> Traced:
    net = PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2,
        cross_attention_dim=64, sample_size=8, patch_size=2, caption_channels=32, use_additional_conditions=False,
    )  # fmt: skip
    batch = Dim("batch")
    found = denoiser(
        WithoutConditions(net),
        {
            "hidden_states": (torch.randn(3, 4, 8, 8), {0: batch}),
            "encoder_hidden_states": (torch.randn(3, 7, 32), {0: batch}),
            "timestep": (torch.full((3,), 500.0), {0: batch}),
            "encoder_attention_mask": (torch.ones(3, 7), {0: batch}),
        },
    )
    # torch 2.13 exports tensor.squeeze(1) of a dim that is not 1, which does nothing in torch, as an invalid Squeeze.
    for node in list(found.model.graph):
        if node.op_type == "Squeeze" and node.inputs[0].shape[1] == 16:
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            found.model.graph.remove(node, safe=True)
    return found


def unet() -> Traced:
    net = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    batch = Dim("batch", max=63)  # the bound that torch.export finds itself
    return denoiser(
        net,
        {
            "sample": (torch.randn(3, 4, 8, 8), {0: batch}),
            "timestep": (torch.full((3,), 500.0), {0: batch}),
            "encoder_hidden_states": (torch.randn(3, 7, 24), {0: batch}),
        },
    )


class WithoutConditions(nn.Module):
    """PixArt with the micro-conditions that it asks for and does not use."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        encoder_attention_mask: Tensor,
        return_dict: bool = False,
    ) -> Tensor:
        return self.net(
            hidden_states, encoder_hidden_states, timestep, encoder_attention_mask=encoder_attention_mask,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None}, return_dict=return_dict,
        )  # fmt: skip


def denoiser(net: nn.Module, inputs: Mapping[str, tuple[Tensor, dict[int, Dim]]]) -> Traced:
    """A raw denoiser: the latents are the loop's, the timestep the schedule's, all else the prompt's."""
    classes = dict.fromkeys(inputs, PROMPT) | {"timestep": SCHEDULE, next(iter(inputs)): LOOP}
    return Traced(traced(net, inputs, return_dict=False), classes, {"batch": 2})


def traced(net: nn.Module, inputs: Mapping[str, tuple[Tensor, dict[int, Dim]]], **fixed: bool) -> ir.Model:
    """`net` with random weights as an ONNX graph; `inputs` gives name -> (example, dynamic dims)."""
    torch.manual_seed(0)
    for parameter in net.parameters():  # the gates of adaLN-Zero would hide everything
        nn.init.normal_(parameter, std=0.1)
    with quiet():
        # torch.export first: torch.onnx.export alone turns named dims into independent ones, and PixArt's
        # caption.view(batch, -1, width) then has an unknown length (torch 2.13).
        program = torch.export.export(
            net.eval(), (), kwargs={name: example for name, (example, _) in inputs.items()} | fixed,
            dynamic_shapes={name: dims for name, (_, dims) in inputs.items()} | dict.fromkeys(fixed), strict=False,
        )  # fmt: skip
        exported = torch.onnx.export(program, dynamo=True, opset_version=18, verbose=False)
    assert exported is not None
    model: ir.Model = exported.model
    names = {}
    for value in model.graph.inputs:  # torch.export names a shared dim after its first guard, such as s53
        for axis, dim in inputs[value.name or ""][1].items():
            assert value.shape is not None
            names[str(value.shape[axis])] = dim.__name__
    rename_dims(model, names)
    return model


def rename_dims(model: ir.Model, names: Mapping[str, str]) -> None:
    """Renames symbolic dims, within expressions too."""
    for value in (*model.graph.inputs, *(value for node in model.graph for value in node.outputs)):
        if value.shape is not None:
            dims = []
            for dim in value.shape.dims:
                text = None if isinstance(dim, int) else dim.value
                if text is not None:
                    for old, new in names.items():
                        text = "*".join(new if factor == old else factor for factor in text.split("*"))
                dims.append(dim if isinstance(dim, int) else text)
            value.shape = ir.Shape(dims)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back the exporter's notes."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
