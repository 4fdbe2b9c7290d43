"""--lora: merged at export, held to a pipeline that keeps the adapters beside its weights."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import DiTTransformer2DModel
from latentc.bundle import open_bundle

from export.pipeline import ExportOptions, export_bundle
from models.components import load_component
from models.dit.modules import AdaptableDiT
from models.latent_diffusion import Lora, SourceError
from models.lora import load_loras, merge_loras
from models.stored_weights import values_of

RANK = 2
# An attention weight stays in the loop; the modulation layer and the timestep embedder leave it.
MODULES = ("attn1.to_q", "attn1.to_out.0", "ff.net.2", "norm1.linear", "norm1.emb.timestep_embedder.linear_2")


@pytest.fixture(scope="module")
def adapter(random_dit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA file in diffusers' keys for the modules above, of both blocks; random, and large enough to matter."""
    generator = torch.Generator().manual_seed(4)
    transformer = DiTTransformer2DModel.from_pretrained(random_dit, subfolder="transformer")
    tensors = {}
    for block in range(2):
        for module in MODULES:
            path = f"transformer_blocks.{block}.{module}"
            out_features, in_features = transformer.get_submodule(path).weight.shape
            a = torch.randn(RANK, in_features, generator=generator) / in_features**0.5
            b = torch.randn(out_features, RANK, generator=generator)
            tensors |= {f"transformer.{path}.lora_A.weight": a, f"transformer.{path}.lora_B.weight": b}
    file = tmp_path_factory.mktemp("loras") / "style.safetensors"
    safetensors.torch.save_file(tensors, file)
    return file


def test_merging_adds_scale_times_b_times_a(random_dit: Path, adapter: Path) -> None:
    plain = load_component(AdaptableDiT, random_dit, "transformer")
    merged = load_component(AdaptableDiT, random_dit, "transformer")
    merge_loras(merged, [Lora(adapter, 0.5)])
    tensors = safetensors.torch.load_file(adapter)
    for block in range(2):
        for module in MODULES:
            path = f"transformer_blocks.{block}.{module}"
            a, b = (tensors[f"transformer.{path}.lora_{x}.weight"] for x in "AB")
            expected = values_of(plain.get_submodule(path).weight) + 0.5 * b @ a
            torch.testing.assert_close(values_of(merged.get_submodule(path).weight), expected, rtol=0, atol=1e-6)
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in plain.named_parameters()}


def test_two_adapters_add_up(random_dit: Path, adapter: Path) -> None:
    twice = load_component(AdaptableDiT, random_dit, "transformer")
    merge_loras(twice, [Lora(adapter, 0.5), Lora(adapter, 0.25)])
    once = load_component(AdaptableDiT, random_dit, "transformer")
    merge_loras(once, [Lora(adapter, 0.75)])
    for (name, a), (_, b) in zip(twice.named_parameters(), once.named_parameters(), strict=True):
        torch.testing.assert_close(values_of(a), values_of(b), rtol=0, atol=1e-6, msg=name)


def test_a_bundle_with_an_adapter_passes_the_gate_and_differs(random_dit: Path, adapter: Path, tmp_path: Path) -> None:
    """Modulation layers included: they are hoisted, and the reference keeps all adapters unmerged."""
    options = ExportOptions(source=str(random_dit), output=tmp_path / "b", steps=(2,), loras=(Lora(adapter, 0.8),))
    manifest = export_bundle(options)
    figures = {figure.tensor: figure for figure in open_bundle(tmp_path / "b").parity().figures}
    assert figures["trajectory/image"].value >= 60.0
    assert any(key.startswith("lora:style.safetensors:0.8") for key in manifest.provenance.source_sha256)
    plain = load_component(AdaptableDiT, random_dit, "transformer")
    adapted = load_component(AdaptableDiT, random_dit, "transformer")
    load_loras(adapted, options.loras)
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.tensor([1]))
    with torch.no_grad():
        before, after = (m(inputs[0], timestep=inputs[1], class_labels=inputs[2]).sample for m in (plain, adapted))
    assert (after - before).norm() / before.norm() > 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer.transformer_blocks.9.attn1.to_q": "transformer.transformer_blocks.0.attn1.to_q"}, r"blocks\.9"),
        ({"unet.attn1.to_q": None}, "begins with 'transformer'"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    random_dit: Path, adapter: Path, tmp_path: Path, change: dict[str, str | None], message: str
) -> None:
    ((wrong, source),) = change.items()
    tensors = safetensors.torch.load_file(adapter)
    source = source or "transformer.transformer_blocks.0.attn1.to_q"
    file = tmp_path / "other.safetensors"
    safetensors.torch.save_file({f"{wrong}.lora_{x}.weight": tensors[f"{source}.lora_{x}.weight"] for x in "AB"}, file)
    with pytest.raises(SourceError, match=message):
        merge_loras(load_component(AdaptableDiT, random_dit, "transformer"), [Lora(file, 1.0)])


@pytest.mark.parametrize(("name", "message"), [("x.safetensors", "no such file"), ("x.bin", "pickled adapters")])
def test_a_file_that_cannot_be_read_is_one_line(random_dit: Path, tmp_path: Path, name: str, message: str) -> None:
    if name.endswith(".bin"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SourceError, match=message):
        merge_loras(load_component(AdaptableDiT, random_dit, "transformer"), [Lora(tmp_path / name, 1.0)])
