"""SANA's denoiser and decoder: against diffusers, as ONNX at sizes that were not traced, and what leaves the loop."""

import copy
import re
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import SanaMultiscaleLinearAttention
from torch import Tensor
from torch.export import Dim

from export.precision import Island
from models.sana.family import LINEAR_ATTENTION_OVERFLOW, Sana
from models.sana.modules import DCDecoder, LinearAttentionProcessor, SanaDenoiser
from tests.models.steps import TracedFamily, hoisted, session, traced_family, weights_of
from tests.models.tracing import relative_error, session_from_module
from tests.pipelines.sana import make_sana, random_dc_autoencoder, random_sana_transformer

KINDS = {
    "1.6B": {},
    "4K, with positions": {"interpolation_scale": 2.0},
    "1.5, with norms of queries and keys": {"qk_norm": "rms_norm_across_heads", "timestep_scale": 0.5},
    "learned variance, patches of 2": {"out_channels": 16, "patch_size": 2},
}


def as_the_pipeline_calls_it(transformer, sample: Tensor, timestep: int, text: Tensor, mask: Tensor) -> Tensor:
    """SanaPipeline.__call__, from 'broadcast to batch dimension' to 'learned sigma'."""
    scaled = torch.tensor(timestep).expand(len(sample)) * transformer.config.timestep_scale
    output = transformer(
        sample, encoder_hidden_states=text, encoder_attention_mask=mask, timestep=scaled, return_dict=False
    )[0].float()
    learned_sigma = transformer.config.out_channels // 2 == sample.shape[1]
    return output.chunk(2, dim=1)[0] if learned_sigma else output


@pytest.mark.parametrize("kind", KINDS)
def test_denoiser_is_diffusers_transformer(kind: str):
    transformer = random_sana_transformer(**KINDS[kind])
    denoiser = SanaDenoiser(random_sana_transformer(**KINDS[kind]))
    patch = transformer.config.patch_size
    torch.manual_seed(1)
    for rows, columns in ((8 // patch, 8 // patch), (3, 7), (6, 2)):
        sample = torch.randn(3, 8, patch * rows, patch * columns)
        text = torch.randn(3, 9, 32)
        mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5, [1] + [0] * 8])
        grid = torch.arange(rows, dtype=torch.float32), torch.arange(columns, dtype=torch.float32)
        with torch.no_grad():
            expected = as_the_pipeline_calls_it(transformer, sample, 741, text, mask)
            given = grid if denoiser.positions is not None else ()
            actual = denoiser(sample, torch.full((3,), 741.0), text, mask.float(), *given)
        assert relative_error(actual, expected) < 2e-6


@pytest.mark.parametrize("options", [{}, {"upsample_block_type": "pixel_shuffle"}], ids=["interpolate", "shuffle"])
def test_decoder_is_diffusers_arithmetic(options: dict):
    vae = random_dc_autoencoder(**options)
    decoder = DCDecoder(copy.deepcopy(vae))
    for height, width in ((2, 3), (7, 5)):  # diffusers takes the quadratic form for the first one
        latents = torch.randn(2, 8, height, width)
        with torch.no_grad():
            expected = (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
            assert relative_error(decoder(latents), expected) < 2e-6
        assert float(expected.std()) > 0.1


def test_decoder_graph_at_other_sizes():
    decoder = DCDecoder(random_dc_autoencoder(levels=3))
    dims = {0: Dim("batch"), 2: Dim("grid_height"), 3: Dim("grid_width")}
    run = session_from_module(decoder, {"latents": (torch.randn(3, 8, 2, 5), dims)})
    for batch, height, width in ((1, 3, 2), (2, 6, 6)):
        latents = torch.randn(batch, 8, height, width)
        with torch.no_grad():
            assert relative_error(run(latents), decoder(latents)) < 1e-5


def test_a_head_without_a_key_gives_zero_and_not_nan():
    """Linear attention divides by a sum over keys, relu(key), which may all be zero, plus 1e-15: 0/0 without it."""
    attention = SanaMultiscaleLinearAttention(16, 16, attention_head_dim=8, norm_type="layer_norm", kernel_sizes=())
    attention.norm_out = torch.nn.Identity()
    attention.processor = LinearAttentionProcessor()
    torch.nn.init.zeros_(attention.to_k.weight)
    run = session_from_module(attention, {"hidden_states": (torch.randn(3, 16, 2, 5), {0: Dim("batch")})})
    assert torch.equal(run(torch.randn(2, 16, 2, 5)), torch.zeros(2, 16, 2, 5))


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> TracedFamily:
    """With everything: positions, norms of queries and keys, a scale of the timestep, a learned variance."""
    options = {"interpolation_scale": 1.0, "qk_norm": "rms_norm_across_heads", "timestep_scale": 0.5}
    source: Path = make_sana(tmp_path_factory.mktemp("sana") / "all", layers=1, out_channels=16, **options)
    return traced_family(Sana().load(source))


def test_graph_at_other_sizes(traced: TracedFamily):
    run = session(traced.graph)
    for branches, batch, grid in ((1, 3, (5, 5)), (2, 1, (3, 8))):
        inputs = traced.inputs(branches, batch, grid, seed=branches)
        with torch.no_grad():
            assert relative_error(run(inputs), traced.step.denoise(*inputs.values())) < 1e-5


def test_text_positions_and_modulation_leave_the_loop(traced: TracedFamily):
    parts = hoisted(traced, flops_per_byte=10.0)
    left = weights_of(parts.prompt) | weights_of(parts.schedule)
    stay = weights_of(parts.denoise)
    assert not left & stay
    assert left | stay == weights_of(traced.graph)
    block = "denoiser.transformer.transformer_blocks.0."
    gone = ("time_embed", "caption_", "positions", "attn2.to_k", "attn2.to_v", "attn2.norm_k", "scale_shift_table")
    assert not [name for name in stay if any(part in name for part in gone)]
    assert {f"{block}attn1.to_k.weight", f"{block}attn2.to_q.weight", f"{block}ff.conv_point.weight"} <= stay


def test_the_island_is_linear_attention_and_nothing_else(traced: TracedFamily):
    """Its products have no weights: only the module path tells them apart, also in the graph that is narrowed."""
    island = Island(LINEAR_ATTENTION_OVERFLOW.pattern, LINEAR_ATTENTION_OVERFLOW.reason)
    for graph in (traced.graph, hoisted(traced, flops_per_byte=10.0).denoise):
        held = [node for node in graph.graph if island.holds(node)]
        assert [node.op_type for node in held].count("MatMul") == 2
        assert "Div" in {node.op_type for node in held}
        weights = {value.name for node in held for value in node.inputs if value.const_value is not None}
        assert not [name for name in weights if re.search(r"\.(to_q|to_k|to_v|to_out)\.", name)]
