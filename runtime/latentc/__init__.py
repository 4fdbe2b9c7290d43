"""latentc: samples compiled latent diffusion bundles without torch."""

__version__ = "0.1.0"
