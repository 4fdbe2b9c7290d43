"""FLUX's denoiser: against diffusers' transformer, as ONNX at other sizes than traced, and what leaves the loop."""

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxPosEmbed
from torch import Tensor

from export.precision import Island
from models.flux.family import RESIDUAL_OVERFLOW, Flux
from models.flux.modules import FluxDenoiser, TurnsPosEmbed, pack, position_ids, unpack
from tests.models.steps import TracedFamily, hoisted, session, traced_family, weights_of
from tests.models.tracing import relative_error
from tests.pipelines.flux import make_flux, random_flux_transformer


def as_the_pipeline_calls_it(
    transformer: FluxTransformer2DModel, sample: Tensor, timestep: float, pooled: Tensor, text: Tensor, guidance: float
) -> Tensor:
    """FluxPipeline.__call__, from its 'Prepare latent variables' to noise_pred, unpacked as before its decoder."""
    rows, channels, height, width = sample.shape
    output = transformer(
        hidden_states=FluxPipeline._pack_latents(sample, rows, channels, height, width),
        timestep=torch.tensor(timestep).expand(rows) / 1000,
        guidance=torch.full([1], guidance).expand(rows) if transformer.config.guidance_embeds else None,
        pooled_projections=pooled,
        encoder_hidden_states=text,
        txt_ids=torch.zeros(text.shape[1], 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(rows, height // 2, width // 2, "cpu", torch.float32),
        return_dict=False,
    )[0]
    return FluxPipeline._unpack_latents(output, 8 * height, 8 * width, vae_scale_factor=8)


def grids(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    return torch.arange(rows, dtype=torch.float32), torch.arange(columns, dtype=torch.float32)


@pytest.mark.parametrize("guidance", [True, False], ids=["dev", "schnell"])
def test_denoiser_is_diffusers_transformer(guidance: bool):
    transformer = random_flux_transformer(guidance=guidance)
    denoiser = FluxDenoiser(random_flux_transformer(guidance=guidance))
    torch.manual_seed(1)
    for rows, columns in ((4, 4), (3, 7), (20, 2)):
        sample, pooled, text = torch.randn(3, 16, 2 * rows, 2 * columns), torch.randn(3, 32), torch.randn(3, 9, 32)
        scale = (torch.full((3,), 2.7),) if guidance else ()
        with torch.no_grad():
            expected = as_the_pipeline_calls_it(transformer, sample, 731.25, pooled, text, 2.7)
            actual = denoiser(sample, torch.full((3,), 731.25), pooled, text, *scale, *grids(rows, columns))
        assert relative_error(actual, expected) < 2e-6


def test_float32_angles_are_as_good_as_float64():
    """The published axes, at every position of a picture of 65,536 pixels a side."""
    ids = torch.stack([torch.zeros(4096), torch.arange(4096.0), torch.arange(4095.0, -1.0, -1.0)], dim=1)
    expected = FluxPosEmbed(theta=10000, axes_dim=[16, 56, 56])(ids)
    actual = TurnsPosEmbed(theta=10000, axes=(16, 56, 56))(ids)
    for found, wanted in zip(actual, expected, strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).abs().max() < 1e-6


def test_packing_is_the_pipelines_and_is_undone():
    latents, grid = torch.randn(2, 16, 6, 10), grids(3, 5)
    packed = pack(latents, *grid)
    assert torch.equal(packed, FluxPipeline._pack_latents(latents, 2, 16, 6, 10))
    assert torch.equal(unpack(packed, *grid), latents)
    expected = FluxPipeline._prepare_latent_image_ids(2, 3, 5, "cpu", torch.float32)
    assert torch.equal(position_ids(*grid), expected)


def test_every_input_changes_the_output():
    denoiser = FluxDenoiser(random_flux_transformer())
    torch.manual_seed(2)
    inputs = [torch.randn(2, 16, 8, 12), torch.full((2,), 600.0), torch.randn(2, 32), torch.randn(2, 9, 32)]
    others = [torch.randn(2, 16, 8, 12), torch.full((2,), 500.0), torch.randn(2, 32), torch.randn(2, 9, 32)]
    inputs += [torch.full((2,), 3.5), *grids(4, 6)]
    others += [torch.full((2,), 2.5), torch.tensor([0.0, 2.0, 1.0, 3.0]), torch.arange(6.0) + 3]
    with torch.no_grad():
        output = denoiser(*inputs)
        for index, other in enumerate(others):
            assert relative_error(denoiser(*inputs[:index], other, *inputs[index + 1 :]), output) > 0.01


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> TracedFamily:
    return traced_family(Flux().load(make_flux(tmp_path_factory.mktemp("flux") / "dev", layers=1)))


def test_graph_at_other_sizes(traced: TracedFamily):
    run = session(traced.graph)
    for branches, batch, grid in ((1, 3, (5, 5)), (2, 1, (3, 8))):
        inputs = traced.inputs(branches, batch, grid, seed=branches)
        with torch.no_grad():
            assert relative_error(run(inputs), traced.step.denoise(*inputs.values())) < 1e-5


def test_positions_text_and_modulation_leave_the_loop(traced: TracedFamily):
    parts = hoisted(traced, flops_per_byte=10.0)
    left = weights_of(parts.prompt) | weights_of(parts.schedule)
    stay = weights_of(parts.denoise)
    assert not left & stay
    assert left | stay == weights_of(traced.graph)
    gone = ("pos_embed", "time_text_embed", "context_embedder", "norm1", "norm1_context", ".norm.linear", "norm_out")
    assert not [name for name in stay if any(part in name for part in gone)]
    assert not [node.op_type for node in parts.denoise.graph if node.op_type in ("Cos", "Sin")]
    assert "denoiser.transformer.single_transformer_blocks.0.attn.to_k.weight" in stay


def test_the_island_is_the_residual_stream_and_reads_no_large_weight(traced: TracedFamily):
    island = Island(RESIDUAL_OVERFLOW.pattern, RESIDUAL_OVERFLOW.reason)
    held = [node for node in traced.graph.graph if island.holds(node)]
    assert {node.op_type for node in held} == {"Add", "Mul"}
    gated = [node for node in held if node.op_type == "Add" and node.inputs[1].producer() in held]
    # Attention and feed-forward of text and image, and the single block; the rest is modulation.
    assert len(gated) == 5
    sizes = [value.const_value.size for node in held for value in node.inputs if value.const_value is not None]
    assert max(sizes, default=0) <= 1
