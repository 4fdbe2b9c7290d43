"""Stable Diffusion's denoiser: against diffusers' U-Net, as ONNX at other sizes, and what leaves the loop."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from models.stable_diffusion.family import LatentConsistency
from models.stable_diffusion.modules import UNetDenoiser
from tests.models.steps import TracedFamily, hoisted, session, traced_family, weights_of
from tests.models.tracing import relative_error
from tests.pipelines.stable_diffusion import make_stable_diffusion, random_unet

KINDS = {
    "v1": {},
    "v2": {"use_linear_projection": True, "attention_head_dim": (2, 4), "upcast_attention": True},
    "three levels": {
        "block_out_channels": (16, 16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    },
    "distilled": {"time_cond_proj_dim": 16},
}


def as_the_pipeline_calls_it(unet, sample: Tensor, timestep: int, text: Tensor, guidance: float | None) -> Tensor:
    """StableDiffusionPipeline.__call__, from its 'Optionally get Guidance Scale Embedding' to 'predict the noise'."""
    condition = None
    if guidance is not None:
        scale = torch.tensor(guidance - 1).repeat(len(sample))
        channels = unet.config.time_cond_proj_dim
        condition = StableDiffusionPipeline.get_guidance_scale_embedding(None, scale, embedding_dim=channels)
    return unet(
        sample, torch.tensor(timestep), encoder_hidden_states=text, timestep_cond=condition, return_dict=False
    )[0]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_denoiser_is_diffusers_unet(kind: str):
    unet, denoiser = random_unet(**KINDS[kind]), UNetDenoiser(random_unet(**KINDS[kind]))
    guidance = 8.5 if kind == "distilled" else None
    torch.manual_seed(1)
    for height, width in ((8, 8), (4, 12), (16, 8)):
        sample, text = torch.randn(3, 4, height, width), torch.randn(3, 9, 32)
        with torch.no_grad():
            expected = as_the_pipeline_calls_it(unet, sample, 741, text, guidance)
            given = [] if guidance is None else [torch.full((3,), guidance)]
            actual = denoiser(sample, torch.full((3,), 741.0), text, *given)
        assert relative_error(actual, expected) < 2e-6


def test_every_input_changes_the_output():
    denoiser = UNetDenoiser(random_unet(time_cond_proj_dim=16))
    torch.manual_seed(2)
    inputs = [torch.randn(2, 4, 8, 8), torch.full((2,), 600.0), torch.randn(2, 9, 32), torch.full((2,), 8.0)]
    others = [torch.randn(2, 4, 8, 8), torch.full((2,), 500.0), torch.randn(2, 9, 32), torch.full((2,), 4.0)]
    with torch.no_grad():
        output = denoiser(*inputs)
        for index, other in enumerate(others):
            assert relative_error(denoiser(*inputs[:index], other, *inputs[index + 1 :]), output) > 0.01


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> TracedFamily:
    """A distilled one: it has every input."""
    source: Path = make_stable_diffusion(tmp_path_factory.mktemp("sd") / "lcm", distilled=True)
    return traced_family(LatentConsistency().load(source))


def test_graph_at_other_sizes_and_with_many_rows(traced: TracedFamily):
    run = session(traced.graph)
    for branches, batch, grid in ((1, 3, (5, 5)), (2, 1, (3, 8)), (2, 33, (2, 2))):
        inputs = traced.inputs(branches, batch, grid, seed=branches)
        with torch.no_grad():
            assert relative_error(run(inputs), traced.step.denoise(*inputs.values())) < 1e-5


def test_text_keys_and_time_projections_leave_the_loop(traced: TracedFamily):
    parts = hoisted(traced, flops_per_byte=10.0)
    left = weights_of(parts.prompt) | weights_of(parts.schedule)
    stay = weights_of(parts.denoise)
    assert not left & stay
    assert left | stay == weights_of(traced.graph)
    gone = ("time_embedding", "time_emb_proj", "guidance_embedding", "attn2.to_k", "attn2.to_v")
    assert not [name for name in stay if any(part in name for part in gone)]
    block = "denoiser.unet.down_blocks.0."
    assert {f"{block}resnets.0.conv1.weight", f"{block}attentions.0.transformer_blocks.0.attn2.to_q.weight"} <= stay
