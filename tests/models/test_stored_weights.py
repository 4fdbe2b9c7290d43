"""Modules whose weights stay in their files: what a call gives, what is in memory, and what is never read."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from torch import nn

import models.stored_weights
from models.components import load_component
from models.latent_diffusion import SourceError
from models.stored_weights import StoredWeight, read_now, stored_parameters, stored_weight, values_of
from tests.sources import write_random_dit


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_dit(tmp_path_factory.mktemp("stored") / "dit")


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are dropped behind every call, as in a large component."""
    monkeypatch.setattr(models.stored_weights, "HELD_BYTES", 0)


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(2, 4, 8, 8, generator=generator),
        "timestep": torch.tensor([500, 20]),
        "class_labels": torch.tensor([1, 7]),
    }


@pytest.mark.parametrize("held", [True, False])
def test_a_call_gives_what_an_ordinary_load_gives(source: Path, held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not held:
        monkeypatch.setattr(models.stored_weights, "HELD_BYTES", 0)
    ordinary = DiTTransformer2DModel.from_pretrained(source, subfolder="transformer").eval()
    stored = load_component(DiTTransformer2DModel, source, "transformer")
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(stored(**inputs()).sample, ordinary(**inputs()).sample)


def test_every_value_is_the_files(source: Path) -> None:
    ordinary = DiTTransformer2DModel.from_pretrained(source, subfolder="transformer")
    stored = load_component(DiTTransformer2DModel, source, "transformer")
    names = [name for name, _, _ in stored_parameters(stored)]
    assert len(names) > 10
    for name, parameter in ordinary.named_parameters():
        assert torch.equal(values_of(stored.get_parameter(name)), parameter), name


@pytest.mark.usefixtures("dropped")
def test_weights_are_in_memory_during_their_modules_call_only(source: Path) -> None:
    transformer = load_component(DiTTransformer2DModel, source, "transformer")
    filled: list[int] = []

    def count(*_: object) -> None:
        filled.append(sum(1 for _, p, _ in stored_parameters(transformer) if not p.flatten()[0].isnan()))

    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        transformer(**inputs())
    count()
    assert max(filled) <= 2  # a weight and a bias
    assert filled[-1] == 0


@pytest.mark.usefixtures("dropped")
def test_an_error_within_a_call_leaves_no_weight_behind(source: Path) -> None:
    transformer = load_component(DiTTransformer2DModel, source, "transformer")
    with pytest.raises(RuntimeError), torch.no_grad():
        transformer(**(inputs() | {"hidden_states": torch.randn(2, 5, 8, 8)}))
    assert all(p.flatten()[0].isnan() for _, p, _ in stored_parameters(transformer))
    with torch.no_grad():
        assert transformer(**inputs()).sample.isfinite().all()


def test_what_is_used_without_a_call_is_no_number(source: Path) -> None:
    transformer = load_component(DiTTransformer2DModel, source, "transformer")
    linear = transformer.transformer_blocks[0].attn1.to_q
    x = torch.ones(1, linear.in_features)
    assert nn.functional.linear(x, transformer.proj_out_1.weight[:, :32]).isnan().any()
    read_now(linear)
    assert nn.functional.linear(x, linear.weight).isfinite().all()


def test_export_reads_no_weight(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = load_component(DiTTransformer2DModel, source, "transformer")
    monkeypatch.setattr(StoredWeight, "read", lambda _: pytest.fail("a weight was read"))
    program = torch.export.export(transformer, (), kwargs=inputs(), strict=False)
    assert len(program.state_dict) > 20


def test_buffers_of_the_checkpoint_are_read(tmp_path: Path) -> None:
    """SD3's positions are a buffer that the checkpoint holds."""
    torch.manual_seed(0)
    original = SD3Transformer2DModel(
        sample_size=8, num_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        caption_projection_dim=32, pooled_projection_dim=32, pos_embed_max_size=8,
    )  # fmt: skip
    original.pos_embed.pos_embed += 1
    original.save_pretrained(tmp_path / "transformer")
    loaded = load_component(SD3Transformer2DModel, tmp_path, "transformer")
    assert torch.equal(loaded.pos_embed.pos_embed, original.pos_embed.pos_embed)


def test_bfloat16_in_shards(source: Path, tmp_path: Path) -> None:
    original = DiTTransformer2DModel.from_pretrained(source, subfolder="transformer").to(torch.bfloat16)
    original.save_pretrained(tmp_path / "transformer", max_shard_size="40KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 2
    loaded = load_component(DiTTransformer2DModel, tmp_path, "transformer")
    for name, parameter in original.named_parameters():
        value = values_of(loaded.get_parameter(name))
        assert value.dtype is torch.float32
        assert torch.equal(value, parameter.float())


def test_a_whole_file_beside_shards_is_passed_over_as_diffusers_does(source: Path, tmp_path: Path) -> None:
    original = DiTTransformer2DModel.from_pretrained(source, subfolder="transformer")
    directory = tmp_path / "transformer"
    original.save_pretrained(directory, max_shard_size="40KB")
    whole = load_file(source / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file({name: 2 * tensor for name, tensor in whole.items()}, directory / "diffusion_pytorch_model.safetensors")
    loaded = load_component(DiTTransformer2DModel, tmp_path, "transformer")
    theirs = DiTTransformer2DModel.from_pretrained(tmp_path, subfolder="transformer")
    name = "transformer_blocks.0.attn1.to_q.weight"
    assert torch.equal(values_of(loaded.get_parameter(name)), theirs.get_parameter(name))


def test_a_file_that_is_cut_off_is_one_line(source: Path, tmp_path: Path) -> None:
    directory = tmp_path / "transformer"
    directory.mkdir()
    for path in (source / "transformer").iterdir():
        data = path.read_bytes()
        (directory / path.name).write_bytes(data[: len(data) // 2] if path.suffix == ".safetensors" else data)
    with pytest.raises(SourceError, match=r"diffusion_pytorch_model\.safetensors: .*fetch the file again"):
        load_component(DiTTransformer2DModel, tmp_path, "transformer")


def test_stand_ins_know_their_key_through_a_rename(tmp_path: Path) -> None:
    """diffusers loads an old name of a VAE's attention under a new one; the stand-in follows."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=(32,), norm_num_groups=8).save_pretrained(tmp_path / "vae")
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(path)
    renamed = {}
    for name, tensor in tensors.items():
        for new, former in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{former}.")
        renamed[name] = tensor
    save_file(renamed, path, metadata={"format": "pt"})
    loaded = load_component(AutoencoderKL, tmp_path, "vae")
    for name, parameter in loaded.named_parameters():
        assert torch.equal(values_of(parameter), tensors[name]), name
    if (weight := stored_weight(loaded.decoder.mid_block.attentions[0].to_q.weight)) is not None:
        assert weight.key.endswith("query.weight")


PEAK = """
import resource, sys, torch
from diffusers import DiTTransformer2DModel
from models.components import load_component
from pathlib import Path
torch.set_num_threads(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load_component(DiTTransformer2DModel, Path(sys.argv[1]), "transformer")
with torch.no_grad():
    out = model(torch.randn(1, 4, 8, 8), timestep=torch.tensor([5]), class_labels=torch.tensor([1])).sample
assert out.isfinite().all()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_the_peak_is_that_of_the_largest_layers(tmp_path: Path) -> None:
    """200 MB of weights in float32: the largest one has 13 MB."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=12, attention_head_dim=64, in_channels=4, out_channels=8, num_layers=4, sample_size=8,
        num_embeds_ada_norm=1000,
    )  # fmt: skip
    num_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert num_bytes > 150 << 20
    model.save_pretrained(tmp_path / "transformer")
    del model
    command = [sys.executable, "-c", PEAK, str(tmp_path)]
    peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    assert peak < 110
