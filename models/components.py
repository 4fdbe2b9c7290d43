"""Loads one component of a diffusers directory: safetensors only, float32, eval mode, no network, no code.

Weights stay in their files until the module is called (models/stored_weights.py).
"""

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from models.latent_diffusion import SourceError
from models.stand_ins import stand_ins
from models.text.loading import quiet
from models.weights import component_config, has_weights, read_object

Module = TypeVar("Module", bound=ModelMixin)
Pipeline = TypeVar("Pipeline", bound=DiffusionPipeline)

# Checkpoints from before diffusers 0.30 name these two by the class that they had in common.
_LEGACY = {"DiTTransformer2DModel": "Transformer2DModel", "PixArtTransformer2DModel": "Transformer2DModel"}


def load_component(module_class: type[Module], source: Path, folder: str) -> Module:
    """Reads SOURCE/folder into `module_class`, upcast to float32; raises SourceError in one line."""
    directory = source / folder
    config = component_config(directory, module_class.__name__)
    _check_class(directory, config.get("_class_name"), module_class)
    try:
        with _without_progress_bar(), stand_ins(directory) as copy:
            module, info = module_class.from_pretrained(
                copy.directory,
                torch_dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=True,  # assigns what is mapped, and copies nothing
                output_loading_info=True,
            )
            copy.adopt(module)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise SourceError(f"{directory}: {_first_line(error)}") from error
    # from_pretrained only warns of these, and fills what is missing with random numbers.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            names = [str(key) for key in info[kind]]
            raise SourceError(f"{directory}: weights do not fit config.json: {kind.replace('_', ' ')}: {_some(names)}")
    result: Module = module.eval()
    return result


def load_scheduler(source: Path) -> SchedulerMixin:
    """The source's own scheduler, by the class name that scheduler_config.json gives; or SourceError, one line."""
    path = source / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        raise SourceError(f"{path}: not found; the source's solver and noise schedule are read from it")
    name = read_object(path).get("_class_name")
    if not isinstance(name, str):
        raise SourceError(f"{path}: no _class_name; it names a scheduler of diffusers, such as DDIMScheduler")
    try:
        return scheduler_class(name).from_pretrained(source, subfolder="scheduler", local_files_only=True)
    except (OSError, ValueError, TypeError, NotImplementedError) as error:  # SourceError is a ValueError
        raise SourceError(f"{path}: {_first_line(error)}") from error


def scheduler_class(name: str) -> type[SchedulerMixin]:
    """A diffusers scheduler class by its name; raises SourceError for one that diffusers does not have."""
    found = getattr(importlib.import_module("diffusers"), name, None) if name.endswith("Scheduler") else None
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise SourceError(f"{name!r} is no scheduler of diffusers; its schedulers have names such as DDIMScheduler")
    return found


def load_pipeline(
    pipeline_class: type[Pipeline], source: Path, scheduler: SchedulerMixin, **components: ModelMixin
) -> Pipeline:
    """The diffusers pipeline itself in float32, as a reference: `components` take the place of the source's own."""
    index = read_object(source / "model_index.json")
    with quiet(), _without_progress_bar():
        for name in index.keys() - components.keys():
            value = index[name]
            if isinstance(value, list) and None not in value and has_weights(source / name):
                components[name] = _component(source / name, *value)
        pipeline: Pipeline = pipeline_class.from_pretrained(
            source,
            scheduler=scheduler,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            **components,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _component(directory: Path, library: str, class_name: str) -> Any:
    """A component as from_pretrained of the pipeline would load it, of the variant that is read of it."""
    module = library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}"
    dtype = {"dtype" if library == "transformers" else "torch_dtype": torch.float32}
    with stand_ins(directory) as copy:
        component = getattr(importlib.import_module(module), class_name).from_pretrained(
            copy.directory, use_safetensors=True, local_files_only=True, **dtype
        )
        copy.adopt(component)
    return component.eval()


def only_errors() -> None:
    """Holds back what diffusers and transformers say of their own inner workings and of cut prompts; for a process."""
    logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()


@contextlib.contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Holds back the bar that diffusers draws while it loads shards."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _check_class(directory: Path, found: str | None, module_class: type[ModelMixin]) -> None:
    """Raises SourceError for a component of another class, whose weights might fit all the same."""
    known = {base.__name__ for base in module_class.__mro__}
    known |= {legacy for name, legacy in _LEGACY.items() if name in known}
    if found is not None and found not in known:
        supported = next(base for base in module_class.__mro__ if base.__module__.startswith("diffusers."))
        raise SourceError(f"{directory}: is a {found}; {supported.__name__} is supported")


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
