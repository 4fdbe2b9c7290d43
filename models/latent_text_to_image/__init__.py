"""The text-to-image model of the latent diffusion paper: a U-Net under BERT's tokens (arXiv 2112.10752)."""
