"""Training of the shipped latent diffusion model: both stages of LDM (arXiv 2112.10752) at emoji size."""
