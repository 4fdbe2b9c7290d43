"""LoRA adapters (arXiv 2106.09685), loaded by diffusers' own code, merged into the weights or left beside them.

Two doors: a pipeline whose class loads adapters (StableDiffusionLoraLoaderMixin and its like: the denoiser, the text
encoders, and the key formats of other trainers), and a single transformer, for a pipeline class that has no loader.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import safetensors
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.loaders.peft import PeftAdapterMixin
from peft.tuners.lora import LoraLayer
from torch import nn

from models.latent_diffusion import Lora, SourceError
from models.stored_weights import set_stored_weight, stored_weight

PREFIX = "transformer"  # diffusers' own: keys are transformer.MODULE.lora_A.weight

# One tensor of each adapted module: peft's, diffusers' older ones, and kohya's.
_FIRST_FACTOR = re.compile(
    r"[._](lora_A|lora_down|lora\.down|lora_linear_layer\.down|lora\.linear_layer\.down)\.weight$"
)


def load_pipeline_loras(pipeline: LoraBaseMixin, loras: Sequence[Lora], unused: str | None = None) -> None:
    """Puts the adapters beside the weights of the pipeline's components, each with its scale.

    `unused` is a pattern of keys that may stay out: of layers that the pipeline's outputs do not depend on. Raises
    SourceError for a file that does not fit, or only in part: diffusers itself would warn and leave the rest out.
    """
    names = [f"lora_{index}" for index in range(len(loras))]
    for name, lora in zip(names, loras, strict=True):
        keys = _keys(lora.file)
        if any("dora_scale" in key for key in keys):
            raise SourceError(f"--lora {lora.file}: a DoRA adapter; diffusers leaves its scales out, so LoRA only")
        wanted = [key for key in keys if _FIRST_FACTOR.search(key) and not (unused and re.search(unused, key))]
        if not wanted:
            raise SourceError(
                f"--lora {lora.file}: none of its {len(keys)} tensors is a LoRA factor (lora_A, lora_down) of this "
                f"model; save it with save_lora_weights of its pipeline"
            )
        try:
            pipeline.load_lora_weights(
                str(lora.file.parent),
                weight_name=lora.file.name,
                adapter_name=name,
                use_safetensors=True,
                local_files_only=True,
            )
        except (ValueError, RuntimeError, KeyError, IndexError, TypeError, OSError) as error:
            raise SourceError(f"--lora {lora.file}: {_first_line(error)}") from error
        found = sum(len(_modules_with(module, name)) for module in _loadable(pipeline).values())
        if found != len(wanted):
            raise SourceError(
                f"--lora {lora.file}: it adapts {len(wanted)} modules and this model has {found} of them; is it for "
                f"another base model?"
            )
    if loras:
        pipeline.set_adapters(names, [lora.scale for lora in loras])


def merge_pipeline_loras(pipeline: LoraBaseMixin, loras: Sequence[Lora], unused: str | None = None) -> None:
    """As load_pipeline_loras, and then adds them to the weights: W + scale·(alpha / rank)·B·A. Nothing is left."""
    load_pipeline_loras(pipeline, loras, unused)
    if loras:
        for module in _loadable(pipeline).values():
            _merge(module)
        pipeline.unload_lora_weights()


def _loadable(pipeline: LoraBaseMixin) -> dict[str, nn.Module]:
    found = {name: getattr(pipeline, name, None) for name in pipeline._lora_loadable_modules}
    return {name: module for name, module in found.items() if module is not None}


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
            raise SourceError(f"--lora {lora.file}: {_first_line(error)}") from error
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
        _merge(module)
        module.unload_lora()


def _merge(module: nn.Module) -> None:
    """Adds what the adapters of `module` add: to the weights in memory now, to stored ones when they are read."""
    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight
            stored = stored_weight(weight)
            if stored is None:
                layer.merge()
            else:
                for adapter in layer.active_adapters:
                    if adapter in layer.lora_A:
                        stored = stored.plus(partial(layer.get_delta_weight, adapter))
                set_stored_weight(weight, stored)


def _keys(file: Path) -> list[str]:
    """The names of a file's tensors; raises SourceError for what is no safetensors file."""
    if file.suffix != ".safetensors" or not file.is_file():
        found = "no such file" if not file.is_file() else "not a .safetensors file; pickled adapters are not read"
        raise SourceError(f"--lora {file}: {found}")
    try:
        with safetensors.safe_open(file, "pt") as tensors:
            return list(tensors.keys())
    except safetensors.SafetensorError as error:
        raise SourceError(f"--lora {file}: {error}") from error


def _adapted_modules(file: Path) -> set[str]:
    """The modules that a file adapts, by the names of their lora_A tensors."""
    keys = _keys(file)
    suffix = ".lora_A.weight"
    modules = {key.removeprefix(f"{PREFIX}.").removesuffix(suffix) for key in keys if key.endswith(suffix)}
    if not any(key.startswith(f"{PREFIX}.") for key in keys):
        raise SourceError(
            f"--lora {file}: no tensor of it begins with {PREFIX!r}; save it with save_lora_weights of its pipeline"
        )
    return modules


def _modules_with(module: nn.Module, adapter: str) -> set[str]:
    return {name for name, child in module.named_modules() if isinstance(child, LoraLayer) and adapter in child.lora_A}


def _first_line(error: BaseException) -> str:
    """torch's own first line of a mismatch names no tensor, the second one does."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
