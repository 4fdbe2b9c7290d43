"""The loop that both stages share: optimisers, average, journal, and a checkpoint from which a run goes on exactly."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm import tqdm

from models.ldm.config import write_config
from models.ldm.journal import append_metrics, load_state, save_state
from models.ldm.schedule import learning_rate_factor, set_learning_rate
from models.ldm.text_to_image.config import LoopConfig


def run(
    config: LoopConfig,
    modules: Mapping[str, nn.Module],
    loss_at: Callable[[int], torch.Tensor],
    folder: Path,
    on_grid: Callable[[Path], None],
    bfloat16: bool,
) -> None:
    """Train `modules` to `config.steps` in `folder`, from its last checkpoint on; they end with averaged weights.

    `loss_at(step)` must be a function of the step and the weights alone. `on_grid` is called while the modules hold the
    averaged weights, with the path of a picture to write.
    """
    write_config(config, folder / "config.json")
    parameters = [value for module in modules.values() for value in module.parameters()]
    matrices, others = parameters_by_optimiser(modules)
    ema = EMAModel(parameters, decay=config.ema_decay, foreach=True)
    muon = torch.optim.Muon(matrices, config.matrix_learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    first_step, running = 0, None
    if (state := load_state(folder / "state.pt")) is not None:
        first_step = cast(int, state["step"])
        for name, module in modules.items():
            module.load_state_dict(cast(dict[str, torch.Tensor], state[name]))
        muon.load_state_dict(cast(dict[str, Any], state["muon"]))
        adam.load_state_dict(cast(dict[str, Any], state["adam"]))
        ema.load_state_dict(cast(dict[str, object], state["ema"]))
        running = cast(float, state["loss"])
    began = time.perf_counter()
    for step in tqdm(range(first_step, config.steps), initial=first_step, total=config.steps, desc=folder.name):
        factor = learning_rate_factor(step, config.warmup_steps, config.steps, config.decay_steps)
        set_learning_rate(muon, config.matrix_learning_rate * factor)
        set_learning_rate(adam, config.learning_rate * factor)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = loss_at(step)
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
        muon.step()
        adam.step()
        ema.step(parameters)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        done = step + 1
        if done % config.log_every == 0 or done == config.steps:
            seconds = round(time.perf_counter() - began, 1)
            figures = {"loss": round(running, 5), "gradient_norm": round(float(norm), 4)}
            append_metrics(folder / "metrics.jsonl", {"step": done, "seconds": seconds, **figures})
        if done % config.save_every == 0 or done == config.steps:
            parts = {**modules, "muon": muon, "adam": adam, "ema": ema}
            states = {name: part.state_dict() for name, part in parts.items()}
            save_state({"step": done, "loss": running, **states}, folder / "state.pt")
        if done % config.grid_every == 0 or done == config.steps:
            ema.store(parameters)
            ema.copy_to(parameters)
            on_grid(folder / f"grid-{done:06d}.png")
            ema.restore(parameters)
    ema.copy_to(parameters)


def parameters_by_optimiser(modules: Mapping[str, nn.Module]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices of the transformer's blocks, which Muon trains, and all else for AdamW."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, module in modules.items():
        for key, value in module.named_parameters():
            of_block = name == "transformer" and "transformer_blocks." in key and value.ndim == 2
            (matrices if of_block else others).append(value)
    return matrices, others
