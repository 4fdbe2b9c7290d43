"""Loads one component of a diffusers directory: safetensors only, float32, eval mode, no network, no code."""

import contextlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging
from transformers.utils import logging as transformers_logging

from models.latent_diffusion import SourceError
from models.text.loading import quiet

Module = TypeVar("Module", bound=ModelMixin)
Pipeline = TypeVar("Pipeline", bound=DiffusionPipeline)


def load_component(module_class: type[Module], source: Path, folder: str) -> Module:
    """Reads SOURCE/folder into `module_class`, upcast to float32; raises SourceError in one line."""
    directory = source / folder
    if not (directory / "config.json").is_file():
        raise SourceError(f"{directory}: no config.json; a diffusers {module_class.__name__} directory has one")
    if not list(directory.glob("*.safetensors")):
        found = sorted(p.name for p in directory.iterdir() if p.name != "config.json")
        raise SourceError(
            f"{directory}: no .safetensors weights (found: {', '.join(found) or 'nothing'}); pickled weights are not "
            f"read: convert them with save_pretrained(safe_serialization=True)"
        )
    try:
        with _without_progress_bar():
            module, info = module_class.from_pretrained(
                source,
                subfolder=folder,
                torch_dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise SourceError(f"{directory}: {_first_line(error)}") from error
    # from_pretrained only warns of these, and fills what is missing with random numbers.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            names = [str(key) for key in info[kind]]
            raise SourceError(f"{directory}: weights do not fit config.json: {kind.replace('_', ' ')}: {_some(names)}")
    result: Module = module.eval()
    return result


def load_scheduler(source: Path) -> SchedulerMixin:
    """The source's own scheduler, by the class name that scheduler_config.json gives."""
    path = source / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        raise SourceError(f"{path}: not found; the source's solver and noise schedule are read from it")
    name = json.loads(path.read_text()).get("_class_name", "")
    return scheduler_class(name).from_pretrained(source, subfolder="scheduler", local_files_only=True)


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
    with quiet(), _without_progress_bar():
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


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
