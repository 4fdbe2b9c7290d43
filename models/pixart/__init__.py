"""PixArt-α and PixArt-Σ: text-to-image diffusion transformers with cross-attention (arXiv 2310.00426, 2403.04692)."""
