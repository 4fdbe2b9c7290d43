"""The DiT repository's checkpoints: converted, they compute what the original computes."""

import argparse
import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import DiTPipeline, DiTTransformer2DModel
from torch import Tensor
from torch.nn import functional

from models.dit.original import main, read_checkpoint, restore_frequencies, transformer_from_original
from models.latent_diffusion import SourceError
from tests.pipelines.vae import make_vae

WIDTH, HEADS, DEPTH, PATCH, GRID, CHANNELS = 48, 3, 2, 2, 4, 4

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """Weights by the names and in the shapes of the DiT repository, random, gates included."""
    draw = torch.Generator().manual_seed(0)
    shapes = {
        "x_embedder.proj": (WIDTH, CHANNELS, PATCH, PATCH),
        "t_embedder.mlp.0": (WIDTH, 256),
        "t_embedder.mlp.2": (WIDTH, WIDTH),
        "final_layer.linear": (PATCH * PATCH * 2 * CHANNELS, WIDTH),
        "final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH),
    }
    for block in range(DEPTH):
        shapes |= {
            f"blocks.{block}.attn.qkv": (3 * WIDTH, WIDTH),
            f"blocks.{block}.attn.proj": (WIDTH, WIDTH),
            f"blocks.{block}.mlp.fc1": (4 * WIDTH, WIDTH),
            f"blocks.{block}.mlp.fc2": (WIDTH, 4 * WIDTH),
            f"blocks.{block}.adaLN_modulation.1": (6 * WIDTH, WIDTH),
        }
    weights = {
        f"{name}.weight": torch.randn(shape, generator=draw) / math.sqrt(math.prod(shape[1:]))
        for name, shape in shapes.items()
    }
    biases = {f"{name}.bias": 0.1 * torch.randn(shape[0], generator=draw) for name, shape in shapes.items()}
    labels = {"y_embedder.embedding_table.weight": torch.randn(1001, WIDTH, generator=draw)}
    return weights | biases | labels | {"pos_embed": positions()}


def positions() -> Tensor:
    """[1, GRID², WIDTH]: half of the channels for the column, half for the row, each sines and then cosines."""
    quarter = WIDTH // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angle = torch.arange(GRID, dtype=torch.float64)[:, None] * frequency
    one = torch.cat([angle.sin(), angle.cos()], dim=1)  # [GRID, WIDTH/2]
    column, row = one.expand(GRID, -1, -1), one[:, None].expand(-1, GRID, -1)
    return torch.cat([column, row], dim=-1).flatten(0, 1)[None].float()


def original_forward(state: State, sample: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
    """DiT (arXiv 2212.09748, figure 3), from its paper: adaLN-Zero, the learned variance in the second half."""

    def linear(name: str, x: Tensor) -> Tensor:
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return functional.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    frequency = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
    angle = timestep[:, None] * frequency
    time = linear("t_embedder.mlp.0", torch.cat([angle.cos(), angle.sin()], dim=1))
    time = linear("t_embedder.mlp.2", functional.silu(time))
    condition = functional.silu(time + state["y_embedder.embedding_table.weight"][labels])
    x = functional.conv2d(sample, state["x_embedder.proj.weight"], state["x_embedder.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2) + state["pos_embed"]
    for block in range(DEPTH):
        b = f"blocks.{block}"
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = linear(f"{b}.adaLN_modulation.1", condition).chunk(6, 1)
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in linear(f"{b}.attn.qkv", modulated(x, shift, scale)).chunk(3, -1)
        )
        attention = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS), dim=-1) @ v
        x = x + gate[:, None] * linear(f"{b}.attn.proj", attention.transpose(1, 2).flatten(2))
        hidden = functional.gelu(linear(f"{b}.mlp.fc1", modulated(x, shift_mlp, scale_mlp)), approximate="tanh")
        x = x + gate_mlp[:, None] * linear(f"{b}.mlp.fc2", hidden)
    shift, scale = linear("final_layer.adaLN_modulation.1", condition).chunk(2, 1)
    out = linear("final_layer.linear", modulated(x, shift, scale))
    out = out.view(-1, GRID, GRID, PATCH, PATCH, 2 * CHANNELS)
    return out.permute(0, 5, 1, 3, 2, 4).reshape(-1, 2 * CHANNELS, GRID * PATCH, GRID * PATCH)


def request() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    sample = torch.randn(3, CHANNELS, GRID * PATCH, GRID * PATCH, generator=draw)
    return sample, torch.tensor([999.0, 421.0, 3.0]), torch.tensor([0, 207, 1000])


def relative_l2(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_computes_what_the_original_computes(state: State) -> None:
    sample, timestep, labels = request()
    transformer = transformer_from_original(state, HEADS)
    expected = original_forward(state, sample, timestep, labels)
    with torch.no_grad():
        assert relative_l2(transformer(sample, timestep, labels).sample, expected) < 1e-5


def test_the_frequencies_are_not_those_of_diffusers(state: State, tmp_path: Path) -> None:
    """The reason for the note in config.json; should diffusers mend it, this test says so."""
    sample, timestep, labels = request()
    write(state, tmp_path)
    assert convert(tmp_path) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = DiTTransformer2DModel.from_pretrained(tmp_path / "out", subfolder="transformer").eval()
    expected = original_forward(state, sample, timestep, labels)
    with torch.no_grad():
        assert relative_l2(loaded(sample, timestep, labels).sample, expected) > 1e-2
        restore_frequencies(loaded, tmp_path / "out")
        assert relative_l2(loaded(sample, timestep, labels).sample, expected) < 1e-5


def test_a_directory_without_the_note_is_left_alone(random_dit: Path) -> None:
    sample, timestep, labels = torch.randn(1, 4, 8, 8), torch.tensor([421.0]), torch.tensor([3])
    transformer = DiTTransformer2DModel.from_pretrained(random_dit, subfolder="transformer").eval()
    with torch.no_grad():
        before = transformer(sample, timestep, labels).sample
        restore_frequencies(transformer, random_dit)
        assert torch.equal(transformer(sample, timestep, labels).sample, before)


def test_the_directory_is_a_pipeline(state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(state, tmp_path)
    assert convert(tmp_path, "--size", "32") == 0
    said = capsys.readouterr()
    assert "is a pickle; read without running code" in said.err
    assert "2 blocks of 48, 32 pixels" in said.out
    config = json.loads((tmp_path / "out" / "transformer" / "config.json").read_text())
    assert (config["num_layers"], config["sample_size"], config["out_channels"]) == (DEPTH, GRID * PATCH, 2 * CHANNELS)
    pipeline = DiTPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline([1], num_inference_steps=1, output_type="np").images.shape == (1, 32, 32, 3)
    assert convert(tmp_path) == 1
    assert "is there already" in capsys.readouterr().err


def test_a_training_checkpoint_gives_its_average(state: State, tmp_path: Path) -> None:
    torch.save({"model": {}, "ema": state, "args": argparse.Namespace(model="DiT-S/2")}, tmp_path / "0050000.pt")
    found = read_checkpoint(tmp_path / "0050000.pt")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


class Malicious:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("code of the checkpoint runs",)


def test_code_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"x_embedder.proj.weight": Malicious()}, tmp_path / "DiT.pt")
    with pytest.raises(SourceError, match="no checkpoint that can be read without running its code"):
        read_checkpoint(tmp_path / "DiT.pt")
    assert "code of the checkpoint runs" not in capsys.readouterr().out


def test_what_is_no_dit_is_refused(state: State) -> None:
    def refusal(changed: State, heads: int | None = HEADS) -> str:
        with pytest.raises(SourceError) as caught:
            transformer_from_original(changed, heads)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    without = {name: value for name, value in state.items() if name != "blocks.1.mlp.fc1.bias"}
    assert "no weights for transformer_blocks.1.ff.net.0.proj.bias" in refusal(without)
    assert "transformer_blocks.0.cross.weight (and 0 more) is not part of a DiT" in refusal(
        state | {"blocks.0.cross.weight": torch.zeros(1)}
    )
    assert "width 48 (known: 384, 768, 1024, 1152): say --heads" in refusal(state, None)
    assert "pos_embed is not" in refusal(state | {"pos_embed": torch.randn_like(state["pos_embed"])})
    table = state["y_embedder.embedding_table.weight"][:11]
    assert "11 rows; DiTPipeline takes 1000" in refusal(state | {"y_embedder.embedding_table.weight": table})
    assert "no x_embedder.proj.weight" in refusal({"conv_in.weight": torch.zeros(1)})
    narrow = state | {"blocks.0.mlp.fc1.weight": torch.zeros(2 * WIDTH, WIDTH)}
    assert "shapes are not a DiT's: size mismatch for transformer_blocks.0.ff.net.0.proj.weight" in refusal(narrow)


def write(state: State, folder: Path) -> None:
    torch.save(state, folder / "DiT.pt")
    make_vae(folder / "vae", levels=3)


def convert(folder: Path, *more: str) -> int:
    arguments = [folder / "DiT.pt", "--vae", folder / "vae", "--output", folder / "out", "--heads", HEADS, *more]
    return main([str(argument) for argument in arguments])
