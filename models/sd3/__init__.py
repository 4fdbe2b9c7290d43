"""Stable Diffusion 3: multimodal diffusion transformers (Esser et al., arXiv 2403.03206), 3.0 and 3.5."""
