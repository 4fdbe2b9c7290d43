"""What leaves the loop at real sizes: parameters, bytes a step, the table. No weight exists, nothing is run.

The figures are the report's of export/hoist, for float32 graphs; in float16 every byte count is half. They are exact
counts of the graph: the machine does not matter.
"""

from dataclasses import dataclass

from benchmarks.hoisting_denoiser import Denoiser
from benchmarks.hoisting_dit import dit
from benchmarks.hoisting_models import flux, pixart, sd3, unet
from benchmarks.hoisting_trace import graph_from_denoiser
from export.hoist import CostModel, partition
from models.ldm.config import AutoencoderConfig, DataConfig, TransformerConfig

STEPS = 28
FLUX_TEXT, SD3_TEXT = (512, 4096), (77 + 256, 4096)  # tokens and width


@dataclass(frozen=True)
class Structure:
    """One denoiser in the loop, before hoisting and after; bytes are float32."""

    model: str
    nodes: int
    parameters_before: int
    parameters_after: int
    bytes_read_per_step_before: int  # weights and inputs
    bytes_read_per_step_after: int  # weights, inputs, the row and what the prompt graph hands over
    row_bytes: int  # of one step
    table_bytes: int  # of all STEPS
    rows_per_step: str
    prompt_tensors: int  # that the loop reads
    prompt_bytes: int  # their size; held once a request
    flops_before: int
    flops_after: int
    declined: tuple[str, ...]
    cheaper_in_the_loop: tuple[str, ...]  # with their weight bytes


def structure_of(denoiser: Denoiser) -> Structure:
    """Traces `denoiser` without weights and cuts it."""
    graph = graph_from_denoiser(denoiser, weights=False)
    parts = partition(graph, denoiser.classes, CostModel(denoiser.dims, steps=STEPS), check_rows=False)
    report, loop = parts.report, parts.report.parts["denoise"]
    handed = [c for c in report.crossings if c.source == "prompt" and "denoise" in c.targets]
    return Structure(
        model=denoiser.name,
        nodes=report.whole.nodes,
        parameters_before=report.whole.parameters,
        parameters_after=loop.parameters,
        bytes_read_per_step_before=report.bytes_read_per_step_before,
        bytes_read_per_step_after=report.bytes_read_per_step_after,
        row_bytes=report.row_bytes,
        table_bytes=report.table_bytes,
        rows_per_step=parts.layout.rows_per_step,
        prompt_tensors=len(handed),
        prompt_bytes=sum(crossing.num_bytes for crossing in handed),
        flops_before=report.whole.flops,
        flops_after=loop.flops,
        declined=tuple(f"{d.value}: {d.reason}" for d in report.declined),
        cheaper_in_the_loop=tuple(f"{c.label}: {c.weight_bytes}" for c in report.cheaper),
    )


def real_denoisers() -> tuple[Denoiser, ...]:
    """The architectures at the sizes of their published checkpoints, the smallest first."""
    return (
        emoji_dit(),
        dit("DiT-S/2 256²", heads=6, head_dim=64, layers=12, size=32),
        flux_dev("FLUX.1-dev 1024², 1 + 1 blocks", double=1, single=1),
        pixart("PixArt-alpha XL/2 512²", layers=28, heads=16, head_dim=72, size=64, text=(120, 4096)),
        dit("DiT-XL/2 256²", heads=16, head_dim=72, layers=28, size=32),
        sd3("SD3-medium 1024²", layers=24, heads=24, head_dim=64, size=128, text=SD3_TEXT, pooled=2048),
        unet("SD-1.5 512²", channels=(320, 640, 1280, 1280), layers=2, heads=8, size=64, text=(77, 768)),
        flux_dev("FLUX.1-dev 1024²", double=19, single=38),
    )


def emoji_dit() -> Denoiser:
    """The model that this repository ships, as its configuration has it."""
    config = TransformerConfig()
    size = DataConfig().size // 2 ** (len(AutoencoderConfig().block_channels) - 1)
    return dit(
        "emoji-dit", heads=config.heads, head_dim=config.head_dim, layers=config.layers, size=size, learned_sigma=False
    )


def flux_dev(name: str, *, double: int, single: int) -> Denoiser:
    """FLUX.1-dev's widths at another depth: 4,096 image tokens."""
    return flux(name, double=double, single=single, heads=24, head_dim=128, text=FLUX_TEXT, pooled=768, side=64)
