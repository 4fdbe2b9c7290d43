"""Stage 1b: only what lies behind the latents changes, and a resumed run is bit-exact."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import models.ldm.train_decoder as train_decoder_module
from models.ldm.adversarial import PatchDiscriminator
from models.ldm.autoencoder import autoencoder_from_config
from models.ldm.config import DecoderConfig
from models.ldm.train_decoder import train_decoder
from tests.models.ldm import tiny

CONFIG = replace(DecoderConfig(), steps=4, warmup_steps=1, batch=2, shift=1, log_every=1, save_every=1)


def trained(config: DecoderConfig, folder: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    vae = autoencoder_from_config(tiny.AUTOENCODER, 16)
    judge = PatchDiscriminator(tiny.AUTOENCODER.discriminator_channels, tiny.AUTOENCODER.discriminator_layers)
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    train_decoder(config, tiny.AUTOENCODER, vae, tiny.pictures(8, seed=1), judge.state_dict(), folder, accelerator)
    return vae.state_dict()


def test_the_encoder_stays_and_the_decoder_learns(tmp_path: Path):
    before, after = trained(replace(CONFIG, steps=0), tmp_path / "none"), trained(CONFIG, tmp_path / "all")
    for name, value in before.items():
        frozen = name.startswith(("encoder.", "quant_conv."))
        assert torch.equal(value, after[name]) == frozen, name


def test_resumed_run_is_bit_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = trained(CONFIG, tmp_path / "whole")
    kept = train_decoder_module.save_state
    with monkeypatch.context() as patch:  # what a run leaves that is killed after its second step
        patch.setattr(train_decoder_module, "save_state", lambda state, path: state["step"] <= 2 and kept(state, path))
        trained(CONFIG, tmp_path / "halves")
    resumed = trained(CONFIG, tmp_path / "halves")
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
