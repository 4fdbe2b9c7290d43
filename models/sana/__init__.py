"""SANA: text-to-image diffusion transformers with linear attention, at 32 pixels per latent (arXiv 2410.10629)."""
