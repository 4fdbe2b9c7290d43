"""Random weights of denoisers: large enough that every input matters, tame enough to be compared in float32."""

import math
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import nn


def spread_weights(module: nn.Module, *, gain: float = 1.0, seed: int = 10) -> None:
    """Every layer keeps its signal's size; gates, shifts and biases, which start at zero, are drawn as well."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for child in module.modules():
            for name, parameter in child.named_parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim > 1 and name == "weight":
                    parameter.copy_(noise * gain / math.sqrt(parameter[0].numel()))  # over what one output reads
                elif name == "weight":
                    parameter.copy_(1.0 + 0.1 * noise)  # of norms
                else:
                    parameter.copy_((0.3 if parameter.ndim > 1 else 0.1) * noise)  # adaLN tables, biases


def write_adapter(file: Path, module: nn.Module, layers: Sequence[str], rank: int = 2) -> Path:
    """A random LoRA file in diffusers' keys for these linear layers of a transformer, large enough to matter."""
    generator = torch.Generator().manual_seed(4)
    tensors = {}
    for layer in layers:
        out_features, in_features = module.get_submodule(layer).weight.shape
        key = f"transformer.{layer}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(rank, in_features, generator=generator) / math.sqrt(in_features)
        tensors[f"{key}.lora_B.weight"] = torch.randn(out_features, rank, generator=generator)
    safetensors.torch.save_file(tensors, file)
    return file
