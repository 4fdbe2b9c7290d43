"""Stable Diffusion 1 and 2: the U-Net of latent diffusion under CLIP's text (Rombach et al., arXiv 2112.10752)."""
