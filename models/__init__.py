"""Families of latent diffusion models, and the model that this repository trains and ships.

Knows torch and diffusers; knows nothing about ONNX, bundles or engines.
"""
