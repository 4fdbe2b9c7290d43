"""The DiT adapter: what it reads, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import Timesteps

from models.dit.family import DiT, read_labels
from models.latent_diffusion import SourceError
from models.timesteps import StoredTimesteps, store_timestep_frequencies


def test_reads_a_directory(random_dit: Path) -> None:
    model = DiT().load(random_dit)
    assert model.latent_shape == (4, 8, 8)
    assert model.image_shape == (3, 32, 32)
    assert (model.default_steps, model.default_cfg_scale, model.labels.null, model.encoder) == (50, 4.0, 1000, None)
    assert model.labels.numbers == {"animal-mammal": 0, "food-fruit": 1, "sky & weather": 7, "sky": 7}
    sample, timestep, labels = torch.randn(2, 4, 8, 8), torch.tensor([9.0, 500.0]), torch.tensor([1, 1000])
    with torch.no_grad():
        output = model.denoiser(sample, timestep, labels)
        image = model.decoder(sample)
    assert output.shape == sample.shape  # the learned variance is split off
    assert image.shape == (2, 3, 32, 32)
    assert 0 <= image.min() < image.max() <= 1


def test_stored_frequencies_are_bit_identical_to_diffusers() -> None:
    timesteps = torch.tensor([0.0, 1.0, 17.5, 500.0, 999.0])
    for channels, flip, shift, scale in ((256, True, 1, 1), (256, False, 0, 1), (64, True, 0, 1000)):
        original = Timesteps(channels, flip, shift, scale)
        assert torch.equal(StoredTimesteps(original)(timesteps), original(timesteps))


def test_every_timestep_module_is_replaced(random_dit: Path) -> None:
    transformer = DiTTransformer2DModel.from_pretrained(random_dit, subfolder="transformer")
    assert any(isinstance(m, Timesteps) for m in transformer.modules())
    store_timestep_frequencies(transformer)
    assert not any(isinstance(m, Timesteps) for m in transformer.modules())


def test_a_checkpoint_without_names_is_labelled_by_number(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline"}))
    assert read_labels(tmp_path, 3) == {"0": 0, "1": 1, "2": 2}


def test_pickled_weights_are_refused(random_dit: Path, tmp_path: Path) -> None:
    source = shutil.copytree(random_dit, tmp_path / "pickled")
    weights = source / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(SourceError, match=r"no .safetensors weights \(found: diffusion_pytorch_model.bin\); pickled"):
        DiT().load(source)


def test_a_damaged_component_is_one_line(random_dit: Path, tmp_path: Path) -> None:
    source = shutil.copytree(random_dit, tmp_path / "damaged")
    weights = source / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SourceError) as error:
        DiT().load(source)
    assert "\n" not in str(error.value)
    assert "vae" in str(error.value)


def test_weights_that_do_not_fit_the_config_are_refused(random_dit: Path, tmp_path: Path) -> None:
    """A missing tensor must not be filled with random numbers, as from_pretrained does by default."""
    import safetensors.torch

    source = shutil.copytree(random_dit, tmp_path / "missing")
    path = source / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    del tensors["proj_out_2.weight"]
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(SourceError, match=r"proj_out_2\.weight"):
        DiT().load(source)
