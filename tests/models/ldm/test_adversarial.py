"""The GAN's parts against values worked out by hand."""

import pytest
import torch

from models.ldm.adversarial import PatchDiscriminator, adaptive_weight, hinge_loss


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    nll = (weight * torch.tensor([3.0, 4.0])).sum()  # gradient (3, 4), norm 5
    generator = (weight * torch.tensor([0.0, 0.5])).sum()  # norm 0.5
    assert adaptive_weight(nll, generator, weight).item() == pytest.approx(5.0 / (0.5 + 1e-4), rel=1e-6)


def test_adaptive_weight_is_clipped_and_detached():
    weight = torch.tensor([1.0], requires_grad=True)
    found = adaptive_weight(100.0 * weight.sum(), 0.0 * weight.sum(), weight)  # 100 / 1e-4 = 1e6
    assert found.item() == 1e4
    assert not found.requires_grad


def test_hinge_loss_by_hand():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.0])
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * (0.25 + 0.5))
    assert hinge_loss(torch.tensor([1.5]), torch.tensor([-1.5])).item() == 0.0


def test_discriminator_judges_patches():
    discriminator = PatchDiscriminator(8, 2).eval()
    logits = discriminator(torch.zeros(2, 3, 64, 64))
    assert logits.shape == (2, 1, 14, 14)


def test_the_verdict_on_a_picture_does_not_depend_on_its_batch():
    discriminator = PatchDiscriminator(8, 2)
    pictures = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(discriminator(pictures)[:1], discriminator(pictures[:1]), atol=1e-6)
    assert not torch.allclose(discriminator(pictures)[:1], discriminator(pictures)[1:2], atol=1e-4)
