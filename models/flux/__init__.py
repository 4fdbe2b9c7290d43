"""FLUX: rectified flow transformers (Black Forest Labs' FLUX.1-dev and -schnell, and others of their architecture)."""
