"""LoRA adapters (arXiv 2106.09685), loaded by diffusers' own code, merged into the weights or left beside them."""

from collections.abc import Sequence
from pathlib import Path

import safetensors
from diffusers.loaders.peft import PeftAdapterMixin
from peft.tuners.lora import LoraLayer
from torch import nn

from models.latent_diffusion import Lora, SourceError

PREFIX = "transformer"  # diffusers' own: keys are transformer.MODULE.lora_A.weight


def load_loras(module: PeftAdapterMixin, loras: Sequence[Lora]) -> None:
    """Puts the adapters beside the weights, each with its scale; raises SourceError for one that does not fit."""
    names = [f"lora_{index}" for index in range(len(loras))]
    for name, lora in zip(names, loras, strict=True):
        wanted = _adapted_modules(lora.file)
        try:
            module.load_lora_adapter(
                str(lora.file.parent),
                prefix=PREFIX,
                adapter_name=name,
                weight_name=lora.file.name,
                use_safetensors=True,
                local_files_only=True,
            )
        except (ValueError, RuntimeError, KeyError, OSError) as error:
            raise SourceError(
                f"--lora {lora.file}: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
            ) from error
        # diffusers only warns of what it does not find, and would leave it out.
        missing = sorted(wanted - _modules_with(module, name))
        if missing:
            raise SourceError(
                f"--lora {lora.file}: this model has no {missing[0]} (and {len(missing) - 1} more missing)"
            )
    if loras:
        module.set_adapters(names, weights=[lora.scale for lora in loras])


def merge_loras(module: PeftAdapterMixin, loras: Sequence[Lora]) -> None:
    """As load_loras, and then adds them to the weights: W + scale·(alpha / rank)·B·A. Nothing is left beside."""
    load_loras(module, loras)
    if loras:
        module.fuse_lora()
        module.unload_lora()


def _adapted_modules(file: Path) -> set[str]:
    """The modules that a file adapts, by the names of their lora_A tensors."""
    if file.suffix != ".safetensors" or not file.is_file():
        found = "no such file" if not file.is_file() else "not a .safetensors file; pickled adapters are not read"
        raise SourceError(f"--lora {file}: {found}")
    try:
        with safetensors.safe_open(file, "pt") as tensors:
            keys = list(tensors.keys())
    except safetensors.SafetensorError as error:
        raise SourceError(f"--lora {file}: {error}") from error
    suffix = ".lora_A.weight"
    modules = {key.removeprefix(f"{PREFIX}.").removesuffix(suffix) for key in keys if key.endswith(suffix)}
    if not any(key.startswith(f"{PREFIX}.") for key in keys):
        raise SourceError(
            f"--lora {file}: no tensor of it begins with {PREFIX!r}; save it with save_lora_weights of its pipeline"
        )
    return modules


def _modules_with(module: nn.Module, adapter: str) -> set[str]:
    return {name for name, child in module.named_modules() if isinstance(child, LoraLayer) and adapter in child.lora_A}
