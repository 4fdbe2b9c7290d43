"""Step caching: the middle blocks of a denoiser, left out of steps in which they add what they added before."""
