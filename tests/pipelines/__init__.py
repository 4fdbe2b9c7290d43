"""Parts of diffusers pipelines with small random weights, in the real layout on disk."""
