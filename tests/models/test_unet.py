"""What U-Net families share: sizes, the embedding of guidance, and upsampling that accepts any number of rows."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.upsampling import Upsample2D
from torch.export import Dim

from models.unet import GuidanceEmbedding, default_size, prepare_for_trace, size_multiple
from models.upsampling import replace_upsampling
from tests.pipelines.stable_diffusion import random_unet

DEEP = {
    "block_out_channels": (8, 8, 8, 16),
    "down_block_types": ("DownBlock2D",) * 4,
    "up_block_types": ("UpBlock2D",) * 4,
    "mid_block_type": "UNetMidBlock2D",
}


def test_sizes_are_multiples_of_the_halvings():
    assert size_multiple(random_unet()) == 2
    deep = random_unet(**DEEP, sample_size=[24, 16])
    assert (size_multiple(deep), default_size(deep)) == (8, (24, 16))


@pytest.mark.parametrize("channels", [16, 256])
def test_guidance_is_embedded_as_the_pipeline_does(channels: int):
    guidance = torch.tensor([1.0, 3.5, 8.5])
    expected = StableDiffusionPipeline.get_guidance_scale_embedding(None, guidance - 1, embedding_dim=channels)
    assert torch.equal(GuidanceEmbedding(channels)(guidance), expected)


def test_preparing_keeps_names_and_numbers():
    unet = random_unet()
    inputs = torch.randn(2, 4, 4, 4), torch.tensor([7.0, 500.0]), torch.randn(2, 9, 32)
    names = set(unet.state_dict())
    with torch.no_grad():
        expected = unet(*inputs).sample
        actual = prepare_for_trace(unet)(*inputs).sample
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    assert set(unet.state_dict()) == names


def test_upsampling_has_no_limit_of_rows():
    """The control: diffusers' own takes a batch of symbolic size for one below 64."""
    block = torch.nn.Sequential(Upsample2D(4, use_conv=True))
    example, shapes = (torch.randn(2, 4, 2, 2),), ({0: Dim("rows")},)
    with pytest.raises(torch._dynamo.exc.UserError, match="rows"):
        torch.export.export(block, example, dynamic_shapes=shapes, strict=False)
    replace_upsampling(block)
    program = torch.export.export(block, example, dynamic_shapes=shapes, strict=False)
    assert program.module()(torch.randn(70, 4, 2, 2)).shape == (70, 4, 4, 4)
