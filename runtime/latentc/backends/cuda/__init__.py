"""What every backend on an NVIDIA GPU shares: the CUDA runtime's calls, device memory, streams, recorded loops."""
