"""Both perceptual distances; LPIPS with random weights in the layout of the published files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.ldm.perceptual import (
    TAP_CHANNELS,
    VGG16_LAYOUT,
    LaplacianPyramidDistance,
    LearnedPerceptualDistance,
    perceptual_distance,
)


def torchvision_layout(seed: int = 0) -> dict[str, torch.Tensor]:
    """`features.N.weight` and `.bias` as torchvision numbers them: each convolution, ReLU and pooling counts."""
    generator = torch.Generator().manual_seed(seed)
    state, index, channels = {}, 0, 3
    for entry in (*VGG16_LAYOUT, "M"):
        if isinstance(entry, int):
            scale = (2.0 / (9 * channels)) ** 0.5
            state[f"features.{index}.weight"] = torch.randn(entry, channels, 3, 3, generator=generator) * scale
            state[f"features.{index}.bias"] = torch.zeros(entry)
            channels, index = entry, index + 2
        else:
            index += 1
    state["classifier.0.weight"] = torch.zeros(1)  # the real file has a head too; it is not used
    return state


def lpips_layout() -> dict[str, torch.Tensor]:
    return {f"lin{index}.model.1.weight": torch.full((1, width, 1, 1), 0.1) for index, width in enumerate(TAP_CHANNELS)}


def test_the_layout_is_torchvisions():
    # The first and the last convolution of vgg16.features are modules 0 and 28.
    names = torchvision_layout()
    assert {"features.0.weight", "features.2.weight", "features.5.weight", "features.28.bias"} <= set(names)
    assert "features.29.weight" not in names


def test_laplacian_distance_is_a_distance_and_prefers_sharp():
    distance = LaplacianPyramidDistance()
    picture = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert distance(picture, picture).tolist() == [0.0, 0.0]
    assert torch.allclose(distance(picture, 0 * picture), distance(0 * picture, picture))
    # Of two errors of equal L1, a flat one and a checkerboard, only the flat one is in no band but the coarsest.
    flat = torch.full((1, 3, 32, 32), 0.1)
    checkers = flat * (1 - 2 * ((torch.arange(32)[:, None] + torch.arange(32)) % 2))
    zero = torch.zeros(1, 3, 32, 32)
    assert distance(flat, zero).item() == pytest.approx(0.1, abs=1e-6)
    assert distance(checkers, zero).item() > 0.09


def test_lpips_matches_a_direct_computation():
    vgg, linear = torchvision_layout(), lpips_layout()
    distance = LearnedPerceptualDistance(vgg, linear)
    left, right = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = distance(left, right)
    assert found.shape == (2,)
    assert (found > 0).all()
    assert distance(left, left).abs().max() == 0
    # The first tap by hand: relu1_2 of both, unit length over the channels, weighted squares, mean over the pixels.
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def tap(pixels: torch.Tensor) -> torch.Tensor:
        hidden = (pixels - shift[:, None, None]) / scale[:, None, None]
        for index in (0, 2):
            hidden = nn.functional.conv2d(
                hidden, vgg[f"features.{index}.weight"], vgg[f"features.{index}.bias"], padding=1
            ).relu()
        return hidden / hidden.norm(dim=1, keepdim=True)

    first = 0.1 * (tap(left) - tap(right)).square().sum(1).mean(dim=(1, 2))
    only_first = {name: value * (1.0 if name.startswith("lin0") else 0.0) for name, value in linear.items()}
    assert torch.allclose(LearnedPerceptualDistance(vgg, only_first)(left, right), first, rtol=1e-4, atol=1e-7)


def test_lpips_reads_both_file_kinds_and_names_what_is_missing(tmp_path: Path):
    save_file(torchvision_layout(), tmp_path / "vgg16.safetensors")
    torch.save(lpips_layout(), tmp_path / "vgg.pth")
    assert isinstance(
        perceptual_distance(tmp_path / "vgg16.safetensors", tmp_path / "vgg.pth"), LearnedPerceptualDistance
    )
    with pytest.raises(ValueError, match=r"features\.0\.bias"):
        perceptual_distance(tmp_path / "vgg.pth", tmp_path / "vgg.pth")
    with pytest.raises(ValueError, match="neither"):
        perceptual_distance(tmp_path / "vgg16.safetensors", None)
    with pytest.raises(ValueError, match="no such weights file"):
        perceptual_distance(tmp_path / "absent.pth", tmp_path / "vgg.pth")
    assert isinstance(perceptual_distance(None, None), LaplacianPyramidDistance)


class Payload:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_weights_file_that_holds_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save({"features.0.weight": Payload()}, tmp_path / "vgg16.pth")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        perceptual_distance(tmp_path / "vgg16.pth", tmp_path / "vgg16.pth")
    assert "code ran" not in capsys.readouterr().out
