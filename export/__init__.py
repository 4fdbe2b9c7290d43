"""The compiler: a diffusers directory goes in, a verified bundle comes out.

Runs from the checkout (`python -m export`). Imports torch, the families of `models`, and latentc's
schema and runtime; nothing imports it.
"""
