"""Training of the shipped latent diffusion models: both stages of LDM (arXiv 2112.10752) at emoji size."""
