"""What of a source is hashed, and sources that are of another kind."""

import json
import shutil
from pathlib import Path

import pytest

from export.source import find_source
from models.latent_diffusion import SourceError


def test_only_what_is_read_is_hashed(random_dit: Path, tmp_path: Path) -> None:
    source = shutil.copytree(random_dit, tmp_path / "dit")
    before = find_source(str(source)).sha256
    assert {"model_index.json", "vae/diffusion_pytorch_model.safetensors", "vae/config.json"} <= set(before)
    (source / "dit.safetensors").touch()
    (source / "vae" / "diffusion_pytorch_model.fp16.safetensors").touch()
    shutil.copytree(source / "vae", source / "vae_1_0")
    assert find_source(str(source)).sha256 == before
    weights = source / "vae" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    after = find_source(str(source)).sha256
    assert set(after) - set(before) == {"vae/diffusion_pytorch_model.fp16.safetensors"}


def test_an_original_checkpoint_says_how_it_is_converted(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"a DiT checkpoint .* python -m models\.dit\.original .*\.pt --vae DIR --out"
    ):
        find_source(str(tmp_path / "DiT-XL-2-256x256.pt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not JSON"), ("[]", "holds a list"), (json.dumps({"_class_name": ["x"]}), r"pipeline class \['x'\]")],
)
def test_a_model_index_that_names_no_pipeline(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(SourceError, match=message):
        find_source(str(tmp_path))
