"""Stable Diffusion 3's denoiser: against diffusers' transformer, as ONNX at other sizes, and what leaves the loop."""

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor
from torch.nn import functional

from export.precision import Island
from models.sd3.family import StableDiffusion3
from models.sd3.modules import CroppedPositions, SD3Denoiser
from tests.models.steps import TracedFamily, hoisted, session, traced_family, weights_of
from tests.models.tracing import relative_error
from tests.pipelines.sd3 import JOINT_WIDTH, WIDTHS, make_sd3, random_sd3_transformer

LARGEST_GRID = 11
EMPTY_TOKENS = 6  # of a T5 that is not there


def as_the_pipeline_calls_it(transformer: SD3Transformer2DModel, sample: Tensor, timestep: float, texts: list[Tensor]):
    """StableDiffusion3Pipeline.encode_prompt, from its 'clip_prompt_embeds', and the call of its denoising loop."""
    clip_hidden, clip_pooled, clip_2_hidden, clip_2_pooled, *t5 = texts
    t5_hidden = t5[0] if t5 else torch.zeros(len(sample), EMPTY_TOKENS, transformer.config.joint_attention_dim)
    clip = torch.cat([clip_hidden, clip_2_hidden], dim=-1)
    clip = functional.pad(clip, (0, t5_hidden.shape[-1] - clip.shape[-1]))
    return transformer(
        hidden_states=sample,
        timestep=torch.tensor(timestep).expand(len(sample)),
        encoder_hidden_states=torch.cat([clip, t5_hidden], dim=-2),
        pooled_projections=torch.cat([clip_pooled, clip_2_pooled], dim=-1),
        return_dict=False,
    )[0]


def random_texts(rows: int, *, t5: bool) -> list[Tensor]:
    """Outputs of both CLIPs, 7 tokens each, and of T5."""
    found = [tensor for width in WIDTHS for tensor in (torch.randn(rows, 7, width), torch.randn(rows, width))]
    return found + ([torch.randn(rows, 5, JOINT_WIDTH)] if t5 else [])


def grids(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    return torch.arange(rows, dtype=torch.float32), torch.arange(columns, dtype=torch.float32)


@pytest.mark.parametrize("t5", [True, False], ids=["T5", "no T5"])
@pytest.mark.parametrize("sd35", [False, True], ids=["3", "3.5"])
def test_denoiser_is_diffusers_transformer(sd35: bool, t5: bool):
    transformer = random_sd3_transformer(sd35=sd35)
    denoiser = SD3Denoiser(random_sd3_transformer(sd35=sd35), LARGEST_GRID, None if t5 else EMPTY_TOKENS)
    torch.manual_seed(1)
    for rows, columns in ((4, 4), (3, 7), (11, 2)):
        sample, texts = torch.randn(3, 16, 2 * rows, 2 * columns), random_texts(3, t5=t5)
        with torch.no_grad():
            expected = as_the_pipeline_calls_it(transformer, sample, 731.25, texts)
            actual = denoiser(sample, torch.full((3,), 731.25), *texts, *grids(rows, columns))
        assert relative_error(actual, expected) < 2e-6


@pytest.mark.parametrize("side", [24, 23])
@pytest.mark.parametrize("largest", [11, 12, 30])
def test_positions_are_the_centre_of_the_table_whatever_is_cut_away(side: int, largest: int):
    transformer = SD3Transformer2DModel(pos_embed_max_size=side, num_layers=1, num_attention_heads=1)
    table = transformer.pos_embed.pos_embed.unflatten(1, (side, side))[0]
    positions = CroppedPositions(table, largest)
    assert positions.side <= max(min(largest + 1, side), largest)
    for rows, columns in ((4, 4), (3, 7), (min(largest, side), 2)):
        expected = transformer.pos_embed.cropped_pos_embed(2 * rows, 2 * columns)[0]
        assert torch.equal(positions(*grids(rows, columns)), expected)


def test_every_input_changes_the_output():
    denoiser = SD3Denoiser(random_sd3_transformer(), LARGEST_GRID, None)
    torch.manual_seed(2)
    inputs = [torch.randn(2, 16, 8, 12), torch.full((2,), 600.0), *random_texts(2, t5=True), *grids(4, 6)]
    others = [torch.randn(2, 16, 8, 12), torch.full((2,), 500.0), *random_texts(2, t5=True)]
    others += [torch.tensor([1.0, 2.0, 0.0, 3.0]), torch.tensor([1.0, 0.0, 3.0, 2.0, 4.0, 5.0])]
    with torch.no_grad():
        output = denoiser(*inputs)
        for index, other in enumerate(others):
            assert relative_error(denoiser(*inputs[:index], other, *inputs[index + 1 :]), output) > 0.01


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> TracedFamily:
    """SD 3.5, with dual attention in the first of two blocks, and T5."""
    return traced_family(StableDiffusion3().load(make_sd3(tmp_path_factory.mktemp("sd3") / "35", sd35=True, layers=2)))


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
    gone = ("positions", "time_text_embed", "context_embedder", "norm1", "norm1_context", "norm_out")
    assert not [name for name in stay if any(part in name for part in gone)]
    assert "denoiser.transformer.transformer_blocks.0.attn2.to_k.weight" in stay


def test_the_islands_are_the_residual_stream_and_the_last_feed_forward_outputs(traced: TracedFamily):
    residual, outputs = (Island(known.pattern, known.reason) for known in traced.step.model.overflows[:2])
    held = [node for node in traced.graph.graph if residual.holds(node)]
    assert {node.op_type for node in held} == {"Add", "Mul"}
    weights = {v.name for n in traced.graph.graph if outputs.holds(n) for v in n.inputs if v.const_value is not None}
    block = "denoiser.transformer.transformer_blocks"
    assert {f"{block}.0.ff.net.2.weight", f"{block}.0.ff_context.net.2.weight", f"{block}.1.ff.net.2.bias"} <= weights
    assert not [name for name in weights if ".net.2." not in name]
