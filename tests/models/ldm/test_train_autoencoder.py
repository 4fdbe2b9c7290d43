"""Stage 1: it learns, the discriminator joins at its step, and a resumed run ends in the very same weights."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from models.ldm.journal import load_state
from models.ldm.train import Plan, train_without_gan
from models.ldm.train_autoencoder import measured_scaling_factor, train_autoencoder
from tests.models.ldm import tiny


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True, mixed_precision="no")


def weights(folder: Path, name: str = "autoencoder", file: str = "state.pt") -> dict[str, torch.Tensor]:
    state = load_state(folder / file)
    assert state is not None
    return state[name]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


def test_resumed_run_is_bit_exact(tmp_path: Path, accelerator: Accelerator):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train_autoencoder(tiny.AUTOENCODER, tiny.split(), whole, accelerator)
    # The second folder stops where a killed run would have left its last checkpoint.
    halves.mkdir()
    (halves / "state.pt").write_bytes((whole / "fork.pt").read_bytes())
    assert not same(weights(halves), weights(whole))
    train_autoencoder(tiny.AUTOENCODER, tiny.split(), halves, accelerator)
    assert same(weights(halves), weights(whole))
    assert same(weights(halves, "discriminator"), weights(whole, "discriminator"))


def test_discriminator_joins_at_its_step_and_the_ablation_forks_there(tmp_path: Path, accelerator: Accelerator):
    folder = tmp_path / "autoencoder"
    train_autoencoder(tiny.AUTOENCODER, tiny.split(), folder, accelerator)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if "l1" in line}
    assert [step for step, line in steps.items() if "adaptive_weight" in line] == [3, 4]
    assert all(0 < steps[step]["adaptive_weight"] <= 1e4 for step in (3, 4))
    assert "psnr_db" in lines[-1]
    assert not same(weights(folder, "discriminator"), weights(folder, "discriminator", "fork.pt"))

    plan = Plan(autoencoder=tiny.AUTOENCODER, work=tmp_path)
    train_without_gan(plan, tiny.split(), accelerator)
    without = tmp_path / "autoencoder-no-gan"
    assert same(weights(without, "discriminator"), weights(folder, "discriminator", "fork.pt"))
    assert not same(weights(without), weights(folder))
    assert not same(weights(without), weights(folder, file="fork.pt"))


def test_loss_goes_down(tmp_path: Path, accelerator: Accelerator):
    config = replace(tiny.AUTOENCODER, adversarial=False, steps=60, learning_rate=5e-3, save_every=100)
    split = tiny.split()
    mean = split.train.images.float().mean(dim=(2, 3), keepdim=True)  # noise cannot be compressed, colours can
    flat = mean.sub(127.5).mul(8).add(127.5).clamp(0, 255).to(torch.uint8).expand(-1, -1, 16, 16)
    train_autoencoder(config, replace(split, train=replace(split.train, images=flat)), tmp_path, accelerator)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["l1"] for line in lines if "l1" in line]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_scaling_factor_is_the_inverse_deviation():
    assert measured_scaling_factor(torch.tensor([-2.0, 2.0, -2.0, 2.0])) == pytest.approx((3 / 16) ** 0.5)
    with pytest.raises(ValueError, match="collapsed"):
        measured_scaling_factor(torch.ones(8))
