"""The sizes that a model of one training size may be asked for."""

from models.latent_diffusion import SizeRange


def sizes_around(sample_size: int, multiple: int) -> SizeRange:
    """From a quarter to twice the latents' size of training, along either axis, in latent pixels.

    Wider than the published aspect ratios (half to twice): what a model makes of a size is its own affair, the bundle
    draws what diffusers draws. A grid has at least two rows and columns: torch.export takes a dimension of 1 for a
    constant.
    """
    quarter = sample_size // 4 // multiple * multiple
    return SizeRange(multiple=multiple, minimum=max(quarter, 2 * multiple), maximum=2 * sample_size)
