"""Loads one transformers model of a diffusers directory: safetensors only, float32, eval mode, no network, no code."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import logging

from models.latent_diffusion import SourceError
from models.stand_ins import stand_ins
from models.weights import component_config

Model = TypeVar("Model", bound=PreTrainedModel)


def load_text_model(model_class: type[Model], source: Path, folder: str) -> Model:
    """Reads SOURCE/folder into `model_class`, whole or sharded, upcast to float32; raises SourceError in one line.

    Attention is the plain one: sdpa picks its arithmetic by whether a mask is given, and has none for soft capping.
    """
    directory = source / folder
    component_config(directory, model_class.__name__)
    try:
        with quiet(), stand_ins(directory) as copy:
            model, info = model_class.from_pretrained(
                copy.directory,
                dtype=torch.float32,
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
            copy.adopt(model)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise SourceError(f"{directory}: {_first_line(error)}") from error
    # from_pretrained only warns of these, and fills what is missing with random numbers.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            names = sorted(str(key) for key in info[kind])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise SourceError(
                f"{directory}: weights do not fit config.json: {kind.replace('_', ' ')}: {', '.join(names[:3])}{more}"
            )
    result: Model = model.eval()
    return result


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back what transformers prints while it loads: progress bars and reports; errors are raised as ever."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
