"""`--tile` on an exported family: the decoder's graph runs on every tile, and the picture is diffusers' tiled one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from latentc.request import Asked, resolve
from latentc.session import open_session, trajectory_of_request

from tests.families.cases import PROMPTS, STEPS
from tests.families.test_pictures import Make

pytestmark = pytest.mark.xdist_group("flux-dev")


def tiled_by_diffusers(vae: AutoencoderKL, latents: np.ndarray, tile: int) -> np.ndarray:
    """float32 [B, 3, height, width] in [0, 1]; each tile is clamped before it is blended, as the graph does it."""
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = tile, tile // 4
    decoder = vae.decoder.forward
    vae.decoder.forward = lambda sample: decoder(sample).clamp(-1, 1)
    scaled = torch.from_numpy(latents) / vae.config.scaling_factor + vae.config.shift_factor
    with torch.no_grad():
        return (vae.decode(scaled).sample / 2 + 0.5).numpy()


# Latents 6×12 in tiles of 8 that are 6 apart: one row of two. 8×8 is one tile, for diffusers, too: the whole.
@pytest.mark.parametrize(("width", "height", "tile"), [(48, 24, 32), (32, 32, 32)])
def test_the_picture_is_diffusers_tiled_one(exported: Make, width: int, height: int, tile: int) -> None:
    made = exported("flux-dev")
    session = open_session(made.bundle, "onnxruntime", threads=1)
    asked = Asked(prompts=PROMPTS[:2], width=width, height=height, steps=STEPS, tile=tile)
    request = resolve(session.bundle.manifest, asked)
    trajectory = trajectory_of_request(session.bundle, request, 3)
    sampling = session.sampling(trajectory)
    assert sum(1 for _ in sampling.steps()) == STEPS
    latents = np.tensordot(trajectory.output_row, sampling._history.read(), 1).astype(np.float32)
    vae = AutoencoderKL.from_pretrained(made.source / "vae", torch_dtype=torch.float32)
    drawn = sampling.decode()
    np.testing.assert_allclose(drawn, tiled_by_diffusers(vae, latents, tile), rtol=0, atol=2e-5)
    whole = session.draw(replace(request, tile=None), 3)
    assert drawn.shape == whole.shape == (2, 3, height, width)
    assert (np.abs(drawn - whole).max() > 1e-2) == (max(width, height) > tile), "only what is tiled may differ"
