"""DiT: class-conditional diffusion transformers (Peebles and Xie, arXiv 2212.09748)."""
