"""Which solver a request names: short aliases beside diffusers' class names, and the settings of each.

The aliases are those of k-diffusion and of the field's user interfaces.
"""

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass

from diffusers.schedulers.scheduling_utils import SchedulerMixin

from models.components import scheduler_class
from models.latent_diffusion import SourceError

Setting = bool | int | float | str | None | list[float]


@dataclass(frozen=True)
class SolverChoice:
    """A scheduler class, and the settings that differ from the source's own scheduler."""

    scheduler: str
    settings: Mapping[str, Setting]


ALIASES: Mapping[str, SolverChoice] = {
    "ddim": SolverChoice("DDIMScheduler", {}),
    "ddpm": SolverChoice("DDPMScheduler", {}),
    "deis": SolverChoice("DEISMultistepScheduler", {}),
    "dpmpp_2m": SolverChoice("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpmpp_2m_karras": SolverChoice(
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True},
    ),
    "dpmpp_2m_sde": SolverChoice(
        "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
    ),
    "dpmpp_3m": SolverChoice("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 3}),
    "euler": SolverChoice("EulerDiscreteScheduler", {}),
    "euler_a": SolverChoice("EulerAncestralDiscreteScheduler", {}),
    "heun": SolverChoice("HeunDiscreteScheduler", {}),
    "kdpm2": SolverChoice("KDPM2DiscreteScheduler", {}),
    "kdpm2_a": SolverChoice("KDPM2AncestralDiscreteScheduler", {}),
    "lcm": SolverChoice("LCMScheduler", {}),
    "lms": SolverChoice("LMSDiscreteScheduler", {}),
    "pndm": SolverChoice("PNDMScheduler", {}),
    "sa": SolverChoice("SASolverScheduler", {"algorithm_type": "data_prediction"}),
    "tcd": SolverChoice("TCDScheduler", {}),
    "unipc": SolverChoice("UniPCMultistepScheduler", {}),
}

# The same names for a flow model (arXiv 2209.03003, 2403.03206): schedulers of its own, or a solver on its sigmas.
_FLOW: Mapping[str, Setting] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
FLOW_ALIASES: Mapping[str, SolverChoice] = {
    "euler": SolverChoice("FlowMatchEulerDiscreteScheduler", {}),
    "heun": SolverChoice("FlowMatchHeunDiscreteScheduler", {}),
    "lcm": SolverChoice("FlowMatchLCMScheduler", {}),
    **{
        name: SolverChoice(ALIASES[name].scheduler, {**ALIASES[name].settings, **_FLOW})
        for name in ("deis", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "sa", "unipc")
    },
}


@dataclass(frozen=True)
class Solver:
    """A scheduler that is ready to be probed: the bundle's name of it, and how to make a fresh one."""

    name: str
    scheduler: SchedulerMixin

    def fresh(self) -> SchedulerMixin:
        """A scheduler of the same settings that has not stepped yet (schedulers keep state between steps)."""
        return type(self.scheduler).from_config(_known(type(self.scheduler), self.scheduler.config))


def own_solver(scheduler: SchedulerMixin) -> Solver:
    """The source's own scheduler, with its own settings, under its alias where one says the same."""
    matching = [
        alias
        for alias, choice in _aliases(scheduler).items()
        if type(scheduler).__name__ == choice.scheduler
        and all(scheduler.config.get(key) == value for key, value in choice.settings.items())
    ]
    # The most specific one: a source with Karras's sigmas is dpmpp_2m_karras, not dpmpp_2m.
    aliases = _aliases(scheduler)
    name = max(matching, key=lambda alias: len(aliases[alias].settings), default=type(scheduler).__name__)
    return Solver(name, scheduler)


def solver_from_name(name: str, source: SchedulerMixin) -> Solver:
    """`name` is an alias or a diffusers class; its settings are the source scheduler's where both have them.

    Raises SourceError for a name that is neither, and for a class that cannot be told what the model
    predicts (a flow solver for an ε-model, say). diffusers' own `compatibles` is not asked: it leaves
    out LCM, TCD and SA, which do work.
    """
    aliases = _aliases(source)
    choice = aliases.get(name, SolverChoice(name, {}))
    if name not in aliases and not name.endswith("Scheduler"):
        near = difflib.get_close_matches(name, aliases, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        kind = " for a flow model" if aliases is FLOW_ALIASES else ""
        raise SourceError(f"unknown solver {name!r}{kind}; known: {', '.join(aliases)}, or a diffusers class{hint}")
    wanted = scheduler_class(choice.scheduler)
    if aliases is FLOW_ALIASES and "use_flow_sigmas" in inspect.signature(wanted.__init__).parameters:
        choice = SolverChoice(choice.scheduler, {**choice.settings, **_FLOW})  # a class by its name is told so, too
    reason = _why_unsuitable(wanted, source)
    if reason:
        raise SourceError(f"{wanted.__name__} cannot solve what {type(source).__name__} was trained for: {reason}")
    if type(source) is wanted and all(source.config.get(key) == value for key, value in choice.settings.items()):
        return Solver(name, source)
    settings = {**choice.settings, **(_shift(wanted, source) if aliases is FLOW_ALIASES else {})}
    return Solver(name, wanted.from_config(_known(wanted, source.config), **settings))


def _known(wanted: type[SchedulerMixin], config: Mapping[str, Setting]) -> dict[str, Setting]:
    """The settings that `wanted` has; diffusers warns of every other one, each time."""
    takes = inspect.signature(wanted.__init__).parameters
    return {name: value for name, value in config.items() if name in takes}


def _aliases(source: SchedulerMixin) -> Mapping[str, SolverChoice]:
    return FLOW_ALIASES if _is_flow(source) else ALIASES


def _is_flow(source: SchedulerMixin) -> bool:
    return type(source).__name__.startswith("FlowMatch") or bool(source.config.get("use_flow_sigmas"))


def _shift(wanted: type[SchedulerMixin], source: SchedulerMixin) -> dict[str, Setting]:
    """The source's static shift of the sigmas by the name that `wanted` has for it."""
    shift = source.config.get("shift", source.config.get("flow_shift", 1.0))
    takes = inspect.signature(wanted.__init__).parameters
    return {name: shift for name in ("shift", "flow_shift") if name in takes}


def _why_unsuitable(wanted: type[SchedulerMixin], source: SchedulerMixin) -> str | None:
    """None, or why a scheduler class cannot take over the source's noise schedule and prediction."""
    takes = inspect.signature(wanted.__init__).parameters
    if isinstance(source, wanted):
        return None
    if _is_flow(source):
        suits = wanted.__name__.startswith("FlowMatch") or "use_flow_sigmas" in takes
        return None if suits else "the model is a flow, and this class has no use_flow_sigmas"
    if "trained_betas" not in takes:
        return "the model has a schedule of betas, and this class takes none"
    prediction = source.config.get("prediction_type", "epsilon")
    if prediction != "epsilon" and "prediction_type" not in takes:
        return f"the model predicts {prediction}, and this class knows epsilon only"
    return None


def plain_settings(scheduler: SchedulerMixin) -> dict[str, Setting]:
    """The scheduler's public settings as JSON holds them: what the manifest records of a solver."""
    settings: dict[str, Setting] = {}
    for key, value in scheduler.config.items():
        if key.startswith("_") or key in ("_class_name", "_diffusers_version"):
            continue
        if value is None or isinstance(value, bool | int | float | str):
            settings[key] = value
        elif isinstance(value, list | tuple) and all(isinstance(v, int | float) for v in value):
            settings[key] = [float(v) for v in value]
    return settings
