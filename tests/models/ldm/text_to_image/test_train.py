"""Both stages: what a batch holds, a run that goes on bit by bit, and guidance inside the network."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.ldm.augment import generator_at
from models.ldm.autoencoder import autoencoder_from_config
from models.ldm.journal import load_state
from models.ldm.text_to_image.flow import batch_at, packed
from models.ldm.text_to_image.networks import flux_autoencoder
from models.ldm.text_to_image.train import Bench, Plan, distil, plan_from_arguments, train_flow
from tests.models.ldm import tiny as tiny_pictures
from tests.models.ldm.text_to_image import tiny


def bench(work: Path, **changes: object) -> Bench:
    torch.manual_seed(0)
    vae = flux_autoencoder(autoencoder_from_config(tiny_pictures.AUTOENCODER, 16))
    plan = Plan(
        network=tiny.NETWORK,
        data=tiny.DATA,
        flow=tiny.FLOW_LOOP,
        distillation=tiny.DISTILLATION_LOOP,
        work=work,
        bfloat16=False,
        shown=("red heart",),
    )
    return Bench(replace(plan, **changes), tiny.latents(), vae, tiny.tokenizers())


def test_target_is_the_velocity_and_padding_is_counted():
    data = tiny.latents()
    batch = batch_at(data, tiny.tokenizers(), tiny.DATA, 400, generator_at(0, 0))
    clean = batch.noisy - batch.times[:, None, None] * batch.target
    distances = (clean[:, None] - packed(data.values)[None]).abs().amax(dim=(2, 3))  # (B, 8)
    assert distances.amin(dim=1).max() < 1e-4
    assert set(distances.argmin(dim=1).tolist()) == set(range(8))  # plain, mirrored and recoloured
    repeats = batch.words.repeats[:, 0, 0].exp()
    assert (repeats.sum(dim=1) - 16 <= 512.5).all()
    assert ((repeats.sum(dim=1) - 16 - 512).abs() < 0.5).float().mean() > 0.3
    empty = (batch.words.t5_ids[:, 0] == 1).float().mean().item()
    assert empty == pytest.approx(tiny.DATA.caption_dropout, abs=0.05)


def test_batch_is_a_function_of_its_generator():
    one, two = (batch_at(tiny.latents(), tiny.tokenizers(), tiny.DATA, 4, generator_at(0, 7)) for _ in range(2))
    assert torch.equal(one.noisy, two.noisy)
    assert torch.equal(one.words.t5_ids, two.words.t5_ids)
    assert torch.equal(one.words.repeats, two.words.repeats)


def test_resumed_run_is_bit_exact_in_both_stages(tmp_path: Path):
    short = {"steps": 2, "decay_steps": 0}
    whole = bench(tmp_path / "whole")
    one = distil(whole, train_flow(whole))
    halves = bench(tmp_path / "halves")
    train_flow(bench(tmp_path / "halves", flow=replace(tiny.FLOW_LOOP, **short)))
    half = bench(tmp_path / "halves", distillation=replace(tiny.DISTILLATION_LOOP, **short))
    distil(half, train_flow(half))
    two = distil(halves, train_flow(halves))
    for name, module in one.modules().items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, two.modules()[name].state_dict()[key]), f"{name}.{key}"
    state = load_state(tmp_path / "whole" / "distil" / "state.pt")
    assert state is not None
    assert state["step"] == 4
    assert (tmp_path / "whole" / "flow" / "grid-000004.png").is_file()


def test_distillation_trains_the_transformer_alone_and_its_guidance_input(tmp_path: Path):
    made = bench(tmp_path)
    teacher = train_flow(made)
    before = {key: value.clone() for key, value in teacher.transformer.state_dict().items()}
    texts = {key: value.clone() for key, value in teacher.t5.state_dict().items()}
    student = distil(made, teacher)
    for key, value in teacher.transformer.state_dict().items():
        assert torch.equal(value, before[key])
    for key, value in student.t5.state_dict().items():
        assert torch.equal(value, texts[key])
    key = "time_text_embed.guidance_embedder.linear_1.weight"
    assert not torch.equal(student.transformer.state_dict()[key], before[key])


def test_plan_defaults_are_the_shipped_run():
    plan = plan_from_arguments([])
    assert plan == Plan()
    assert plan_from_arguments(["--stage", "flow"]).stages == ("flow",)
