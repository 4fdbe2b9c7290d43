"""What leaves the loop of every family at the size of its published checkpoint: no weight exists, nothing is run.

    python -m benchmarks.family_sizes [--only NAME …]      writes benchmarks/results/family_sizes.json

The denoisers are the families' own modules around diffusers' classes with the published configurations, traced under
torch's fake tensors, cleaned and cut as an export does it: one guided image of the default size, 28 steps. Counts are
exact and no machine matters.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import onnx_ir as ir
import torch
from diffusers import (
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from diffusers.schedulers import DDIMScheduler
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode  # the class is public in torch's docs, its module is not

from benchmarks.hoisting_trace import make_weights_lazy
from export.compile import LOOP_INPUTS, SCHEDULE_INPUTS, typical_dims
from export.hoist import CostModel, InputClass, Partition, partition
from export.passes.pipeline import clean_graph
from export.step import FusedStep, fuse_step
from export.trace import trace_denoise
from models.flux.modules import FluxDenoiser
from models.latent_diffusion import GRID_COLUMNS, GRID_ROWS, GUIDANCE, LatentDiffusion, SizeRange
from models.pixart.modules import PixArtDenoiser
from models.sana.modules import SanaDenoiser
from models.sd3.modules import SD3Denoiser
from models.sdxl.modules import SDXLDenoiser
from models.sizes import sizes_around
from models.stable_diffusion.modules import UNetDenoiser

STEPS = 28
RESULTS = Path(__file__).parent / "results" / "family_sizes.json"
GRID = (GRID_ROWS, GRID_COLUMNS)
CLIP, T5 = 77, 4096


@dataclass(frozen=True)
class Published:
    """A denoiser at its real size, and what it is conditioned on."""

    name: str
    case: str  # of tests/families/cases.py
    make: Callable[[], nn.Module]
    conditioning: tuple[str, ...]
    texts: Mapping[str, tuple[int, ...]]  # shape of each text encoder's output for one prompt
    channels: int
    side: int  # of the latents
    sizes: SizeRange = field(default_factory=lambda: SizeRange(1, 1, 1))


@dataclass(frozen=True)
class Counted:
    """Parameters of one step, and of what stays in the loop."""

    model: str
    case: str
    parameters_before: int
    parameters_after: int
    nodes: int


def published() -> tuple[Published, ...]:
    """The published checkpoints, by their configurations."""
    sd3_text = {
        "clip_hidden": (CLIP, 768), "clip_pooled": (768,), "clip_2_hidden": (CLIP, 1280), "clip_2_pooled": (1280,),
        "t5_hidden": (256, T5),
    }  # fmt: skip
    flux_text = {"clip_pooled": (768,), "t5_hidden": (512, T5)}
    return (
        Published("FLUX.1-dev 1024²", "flux-dev", lambda: FluxDenoiser(FluxTransformer2DModel(guidance_embeds=True)),
                  (*flux_text, GUIDANCE, *GRID), flux_text, 16, 128, sizes_around(128, 2)),
        Published("FLUX.1-schnell 1024²", "flux-schnell", lambda: FluxDenoiser(FluxTransformer2DModel()),
                  (*flux_text, *GRID), flux_text, 16, 128, sizes_around(128, 2)),
        Published("SD3-medium 1024²", "sd3-medium", lambda: sd3(layers=24, heads=24), (*sd3_text, *GRID), sd3_text,
                  16, 128, sizes_around(128, 2)),
        Published("SD3.5-large 1024²", "sd3.5-without-t5", lambda: sd3(layers=38, heads=38, qk_norm="rms_norm"),
                  (*sd3_text, *GRID), sd3_text, 16, 128, sizes_around(128, 2)),
        Published("PixArt-α XL/2 1024²", "pixart-alpha", lambda: pixart(use_additional_conditions=True),
                  ("t5_hidden", "t5_mask", *GRID), {"t5_hidden": (120, T5), "t5_mask": (120,)}, 4, 128,
                  sizes_around(128, 2)),
        Published("PixArt-Σ XL/2 1024²", "pixart-sigma", lambda: pixart(use_additional_conditions=False),
                  ("t5_hidden", "t5_mask", *GRID), {"t5_hidden": (300, T5), "t5_mask": (300,)}, 4, 128,
                  sizes_around(128, 2)),
        Published("SANA 1.6B 1024²", "sana", lambda: SanaDenoiser(SanaTransformer2DModel()),
                  ("gemma_hidden", "gemma_mask"), {"gemma_hidden": (300, 2304), "gemma_mask": (300,)}, 32, 32,
                  sizes_around(32, 1)),
        Published("SD 1.5 512²", "sd-1.5", lambda: UNetDenoiser(unet(768)), ("clip_hidden",),
                  {"clip_hidden": (CLIP, 768)}, 4, 64, sizes_around(64, 8)),
        Published("SD 2.1 768²", "sd-2.1-v", lambda: UNetDenoiser(unet(1024, (5, 10, 20, 20))), ("clip_hidden",),
                  {"clip_hidden": (CLIP, 1024)}, 4, 96, sizes_around(96, 8)),
        Published("SDXL 1024²", "sdxl", lambda: SDXLDenoiser(sdxl_unet(), 8),
                  (*GRID, "clip_hidden", "clip_2_hidden", "clip_2_pooled"),
                  {"clip_hidden": (CLIP, 768), "clip_2_hidden": (CLIP, 1280), "clip_2_pooled": (1280,)}, 4, 128,
                  sizes_around(128, 4)),
        Published("LDM text2im 256²", "ldm", lambda: UNetDenoiser(unet(1280)), ("bert_hidden",),
                  {"bert_hidden": (CLIP, 1280)}, 4, 32, sizes_around(32, 8)),
    )  # fmt: skip


def sd3(layers: int, heads: int, **config: object) -> nn.Module:
    """SD3's transformer: 64 channels a head, positions for up to 192 × 192 patches."""
    transformer = SD3Transformer2DModel(
        sample_size=128, num_layers=layers, num_attention_heads=heads, attention_head_dim=64, out_channels=16,
        caption_projection_dim=64 * heads, joint_attention_dim=T5, pooled_projection_dim=2048, pos_embed_max_size=192,
        **config,
    )  # fmt: skip
    return SD3Denoiser(transformer, sizes_around(128, 2).maximum // 2, None)


def pixart(use_additional_conditions: bool) -> nn.Module:
    """PixArt-XL/2 at 1024 px."""
    transformer = PixArtTransformer2DModel(
        sample_size=128, interpolation_scale=2, use_additional_conditions=use_additional_conditions, caption_channels=T5
    )
    return PixArtDenoiser(transformer, 8)


def unet(width: int, heads: int | tuple[int, ...] = 8) -> UNet2DConditionModel:
    """Stable Diffusion's U-Net, which LDM's text-to-image model has, too."""
    return UNet2DConditionModel(
        sample_size=64, cross_attention_dim=width, attention_head_dim=heads, use_linear_projection=heads != 8
    )


def sdxl_unet() -> UNet2DConditionModel:
    """SDXL's U-Net: no attention at the top, ten layers of it at the bottom."""
    return UNet2DConditionModel(
        sample_size=128, block_out_channels=(320, 640, 1280), transformer_layers_per_block=(1, 2, 10),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(5, 10, 20), cross_attention_dim=2048, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    )  # fmt: skip


def counted(model: Published) -> Counted:
    """Traces, cleans and cuts one denoiser."""
    step, graph = traced(model)
    report = cut(step, clean_graph(graph, "onnxruntime")).report
    return Counted(
        model=model.name,
        case=model.case,
        parameters_before=report.whole.parameters,
        parameters_after=report.parts["denoise"].parameters,
        nodes=report.whole.nodes,
    )


def traced(model: Published) -> tuple[FusedStep, ir.Model]:
    """The denoise graph of one model, with weights that nothing has been done to yet, and the step that it is of."""
    with FakeTensorMode():
        step = fuse_step(
            LatentDiffusion(
                name=model.name,
                family="",
                pipeline="",
                denoiser=model.make().eval(),
                decoder=nn.Identity(),
                conditioning=model.conditioning,
                scheduler=DDIMScheduler(),
                latent_shape=(model.channels, model.side, model.side),
                image_shape=(3, 8 * model.side, 8 * model.side),
                guided_channels=model.channels,
                default_steps=STEPS,
                default_cfg_scale=4.0,
                sizes=model.sizes,
            )
        )
        graph = trace_denoise(step, {name: torch.randn(2, *shape) for name, shape in model.texts.items()})
    make_weights_lazy(graph)
    return step, graph


def cut(step: FusedStep, clean: ir.Model) -> Partition:
    """What an export with the default solver would take out of the loop."""
    classes = {
        value.name or "": InputClass.LOOP
        if value.name in LOOP_INPUTS
        else InputClass.SCHEDULE
        if value.name in SCHEDULE_INPUTS
        else InputClass.PROMPT
        for value in clean.graph.inputs
    }
    cost_model = CostModel(dims=typical_dims(step, STEPS), steps=STEPS)
    return partition(clean, classes, cost_model, check_rows=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Counts, and keeps the figures of models that were not asked for."""
    models = {model.name: model for model in published()}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.family_sizes")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(models), default=list(models))
    wanted = parser.parse_args(arguments).only
    known = {row["model"]: row for row in json.loads(RESULTS.read_text())["models"]} if RESULTS.is_file() else {}
    for name in wanted:
        known[name] = asdict(counted(models[name]))
        print(json.dumps(known[name]), file=sys.stderr)
        document = {"command": "python -m benchmarks.family_sizes", "steps": STEPS, "models": list(known.values())}
        RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
