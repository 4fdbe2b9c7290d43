"""Stable Diffusion XL, base model (Podell et al., arXiv 2307.01952)."""
