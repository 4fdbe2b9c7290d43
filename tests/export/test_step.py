"""The fused step against its parts, in torch."""

import pytest
import torch
from torch import Tensor, nn

from export.step import DecodeStep, DenoiseStep, combine


class Toy(nn.Module):
    """A denoiser that tells its rows apart: sample · (1 + label) + timestep."""

    def forward(self, sample: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
        return sample * (1 + labels)[:, None, None, None] + timestep[:, None, None, None]


HISTORY = torch.arange(3 * 2 * 4 * 1 * 1, dtype=torch.float32).view(3, 2, 4, 1, 1)
ROW = torch.tensor([1.0, 0.5, -2.0])


def test_combine_is_the_weighted_sum() -> None:
    expected = HISTORY[0] + 0.5 * HISTORY[1] - 2.0 * HISTORY[2]
    torch.testing.assert_close(combine(ROW, HISTORY), expected, rtol=0, atol=0)


@pytest.mark.parametrize("guided", [4, 3])
def test_guidance_mixes_the_guided_channels_and_leaves_the_others_to_the_condition(guided: int) -> None:
    labels, timestep = torch.tensor([[1, 2], [0, 0]]), torch.full((2, 2), 7.0)
    scale = 3.0
    step = DenoiseStep(Toy(), guided, ("class_labels",))
    actual = step(HISTORY, ROW, timestep, torch.tensor([scale, 1 - scale]), labels)
    sample = combine(ROW, HISTORY)
    conditional, unconditional = (Toy()(sample, timestep[k], labels[k]) for k in (0, 1))
    expected = unconditional + scale * (conditional - unconditional)
    expected[:, guided:] = conditional[:, guided:]
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    assert not torch.allclose(actual, conditional)


def test_one_branch_of_weight_one_is_the_bare_denoiser() -> None:
    labels, timestep = torch.tensor([[1, 2]]), torch.full((1, 2), 7.0)
    actual = DenoiseStep(Toy(), 4, ("class_labels",))(HISTORY, ROW, timestep, torch.tensor([1.0]), labels)
    torch.testing.assert_close(actual, Toy()(combine(ROW, HISTORY), timestep[0], labels[0]), rtol=0, atol=0)


def test_decode_combines_before_it_decodes() -> None:
    torch.testing.assert_close(DecodeStep(nn.Tanh())(HISTORY, ROW), torch.tanh(combine(ROW, HISTORY)), rtol=0, atol=0)
