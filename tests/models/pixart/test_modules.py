"""PixArt's denoiser: against diffusers' transformer, as ONNX at other sizes than traced, and what leaves the loop."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.pixart.family import PixArt
from models.pixart.modules import PixArtDenoiser
from tests.models.steps import TracedFamily, hoisted, session, traced_family, weights_of
from tests.models.tracing import relative_error
from tests.pipelines.pixart import make_pixart, random_pixart_transformer

FACTOR = 8  # pixels per latent
KINDS = {
    "sigma": {},
    "alpha, which knows the pixel size": {"use_additional_conditions": True},
    "no learned variance": {"out_channels": 4},
    "no caption projection": {"caption_channels": None},
}


def as_the_pipeline_calls_it(transformer, sample: Tensor, timestep: int, text: Tensor, mask: Tensor) -> Tensor:
    """PixArtAlphaPipeline.__call__, from its 'Prepare micro-conditions' to its 'learned sigma'."""
    rows, channels, height, width = sample.shape
    resolution = torch.tensor([FACTOR * height, FACTOR * width]).repeat(rows, 1).float()
    aspect_ratio = torch.tensor([float(height / width)]).repeat(rows, 1)
    output = transformer(
        sample,
        encoder_hidden_states=text,
        encoder_attention_mask=mask,
        timestep=torch.tensor([timestep]).expand(rows),
        added_cond_kwargs={"resolution": resolution, "aspect_ratio": aspect_ratio},
        return_dict=False,
    )[0]
    return output.chunk(2, dim=1)[0] if transformer.config.out_channels // 2 == channels else output


@pytest.mark.parametrize("kind", KINDS)
def test_denoiser_is_diffusers_transformer(kind: str):
    transformer = random_pixart_transformer(**KINDS[kind])
    denoiser = PixArtDenoiser(random_pixart_transformer(**KINDS[kind]), FACTOR)
    torch.manual_seed(1)
    for rows, columns in ((4, 4), (3, 7), (6, 2)):  # the trained grid is 4×4
        sample = torch.randn(3, 4, 2 * rows, 2 * columns)
        text = torch.randn(3, 9, 48 if "caption" in kind else 32)
        mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5, [1] + [0] * 8])
        grid = torch.arange(rows, dtype=torch.float32), torch.arange(columns, dtype=torch.float32)
        with torch.no_grad():
            expected = as_the_pipeline_calls_it(transformer, sample, 741, text, mask)
            actual = denoiser(sample, torch.full((3,), 741.0), text, mask.float(), *grid)
        assert relative_error(actual, expected) < 2e-6


def test_every_input_changes_the_output():
    denoiser = PixArtDenoiser(random_pixart_transformer(use_additional_conditions=True), FACTOR)
    torch.manual_seed(2)
    grid = torch.arange(4.0), torch.arange(6.0)
    inputs = [torch.randn(2, 4, 8, 12), torch.full((2,), 600.0), torch.randn(2, 9, 32), torch.ones(2, 9), *grid]
    others = [torch.randn(2, 4, 8, 12), torch.full((2,), 500.0), torch.randn(2, 9, 32), torch.ones(2, 9).tril()]
    others += [grid[0] + 0.5, grid[1] + 0.5]
    with torch.no_grad():
        output = denoiser(*inputs)
        for index, other in enumerate(others):
            assert relative_error(denoiser(*inputs[:index], other, *inputs[index + 1 :]), output) > 0.01


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> TracedFamily:
    """α at 1024 px: the one that has everything."""
    pipeline = "PixArtAlphaPipeline"
    source: Path = make_pixart(tmp_path_factory.mktemp("pixart") / "alpha", pipeline, sample_size=128, layers=1)
    return traced_family(PixArt(pipeline).load(source))


def test_graph_at_other_sizes(traced: TracedFamily):
    run = session(traced.graph)
    for branches, batch, grid in ((1, 3, (5, 5)), (2, 1, (3, 8))):
        inputs = traced.inputs(branches, batch, grid, seed=branches)
        with torch.no_grad():
            assert relative_error(run(inputs), traced.step.denoise(*inputs.values())) < 1e-5


def test_text_positions_sizes_and_modulation_leave_the_loop(traced: TracedFamily):
    parts = hoisted(traced, flops_per_byte=10.0)
    left = weights_of(parts.prompt) | weights_of(parts.schedule)
    stay = weights_of(parts.denoise)
    assert not left & stay
    assert left | stay == weights_of(traced.graph)
    block = "denoiser.transformer.transformer_blocks.0."
    gone = ("adaln_single", "caption_projection", "positions", "attn2.to_k", "attn2.to_v")
    assert not [name for name in stay if any(part in name for part in gone)]
    assert {f"{block}attn1.to_k.weight", f"{block}attn2.to_q.weight", f"{block}ff.net.2.weight"} <= stay
    # The scale and shift tables are added to what the timestep gives: they need not stay either.
    assert not [name for name in stay if "scale_shift_table" in name]
