"""SDXL's denoiser: against diffusers' U-Net, as ONNX at sizes that were not traced, and what leaves the loop."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.sdxl.family import SDXL
from models.sdxl.modules import SDXLDenoiser
from tests.models.steps import TracedFamily, hoisted, session, traced_family, weights_of
from tests.models.tracing import relative_error
from tests.pipelines.sdxl import CLIP_G, CLIP_L, PROJECTION, make_sdxl, random_sdxl_unet

FACTOR = 8  # pixels per latent


def as_the_pipeline_calls_it(unet, sample: Tensor, timestep: int, texts: list[Tensor], pooled: Tensor) -> Tensor:
    """StableDiffusionXLPipeline.__call__ for a picture of its own size, uncropped."""
    size = (FACTOR * sample.shape[2], FACTOR * sample.shape[3])
    time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32).repeat(len(sample), 1)
    return unet(
        sample,
        torch.tensor(timestep),
        encoder_hidden_states=torch.concat(texts, dim=-1),
        added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
        return_dict=False,
    )[0]


def test_denoiser_is_diffusers_unet():
    layers = {"transformer_layers_per_block": (1, 2)}
    unet, denoiser = random_sdxl_unet(**layers), SDXLDenoiser(random_sdxl_unet(**layers), FACTOR)
    torch.manual_seed(1)
    for rows, columns in ((4, 4), (2, 6), (8, 4)):
        sample = torch.randn(3, 4, 2 * rows, 2 * columns)
        texts, pooled = [torch.randn(3, 9, CLIP_L), torch.randn(3, 9, CLIP_G)], torch.randn(3, PROJECTION)
        grid = torch.arange(rows, dtype=torch.float32), torch.arange(columns, dtype=torch.float32)
        with torch.no_grad():
            expected = as_the_pipeline_calls_it(unet, sample, 741, texts, pooled)
            actual = denoiser(sample, torch.full((3,), 741.0), *grid, *texts, pooled)
        assert relative_error(actual, expected) < 2e-6


def test_every_input_changes_the_output():
    denoiser = SDXLDenoiser(random_sdxl_unet(time_cond_proj_dim=16), FACTOR)

    def inputs(timestep: float, sizes: tuple[int, int], guidance: float) -> list[Tensor]:
        grid = (torch.arange(float(size)) for size in sizes)
        texts = torch.randn(2, 9, CLIP_L), torch.randn(2, 9, CLIP_G), torch.randn(2, PROJECTION)
        guidance_rows = torch.full((2,), guidance)
        return [torch.randn(2, 4, 8, 8), torch.full((2,), timestep), *grid, *texts, guidance_rows]

    torch.manual_seed(2)
    given, others = inputs(600.0, (4, 4), 8.0), inputs(500.0, (5, 6), 4.0)
    with torch.no_grad():
        output = denoiser(*given)
        for index, other in enumerate(others):
            assert relative_error(denoiser(*given[:index], other, *given[index + 1 :]), output) > 0.01


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> TracedFamily:
    source: Path = make_sdxl(tmp_path_factory.mktemp("sdxl") / "base")
    return traced_family(SDXL().load(source))


def test_graph_at_other_sizes(traced: TracedFamily):
    run = session(traced.graph)
    for branches, batch, grid in ((1, 3, (5, 5)), (2, 1, (3, 8))):
        inputs = traced.inputs(branches, batch, grid, seed=branches)
        with torch.no_grad():
            assert relative_error(run(inputs), traced.step.denoise(*inputs.values())) < 1e-5


def test_text_keys_size_and_time_projections_leave_the_loop(traced: TracedFamily):
    parts = hoisted(traced, flops_per_byte=10.0)
    left = weights_of(parts.prompt) | weights_of(parts.schedule)
    stay = weights_of(parts.denoise)
    assert not left & stay
    assert left | stay == weights_of(traced.graph)
    gone = ("time_embedding", "add_embedding", "time_emb_proj", "attn2.to_k", "attn2.to_v")
    assert not [name for name in stay if any(part in name for part in gone)]
    block = "denoiser.unet.mid_block."
    assert {f"{block}resnets.0.conv1.weight", f"{block}attentions.0.transformer_blocks.0.attn2.to_q.weight"} <= stay
