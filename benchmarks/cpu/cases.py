"""What `make bench` draws, and by which tools: nothing but data, so that a new model, peer or variant is one entry.

Every tool of a model draws the same request: same weights, seed, solver (the checkpoint's own), steps, guidance, size,
batch and threads. Steps and rounds are fewer where a step is long: `make bench` shall take half an hour on two cores.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

THREADS = 2
SEED = 7
PROMPT = "a red heart"
REFERENCE = "diffusers"  # whose pictures all others are compared with
LEAST_PSNR_DB = 35.0  # a tool whose pictures differ by more is in the tables, and is nobody's rival


@dataclass(frozen=True)
class Model:
    """One model and its request. `shape` is what benchmarks.random_checkpoint calls it; None: models/ ships it."""

    name: str
    kind: str  # dit, flux or sd3: which arguments the pipeline takes
    shape: str | None
    pixels: int
    steps: int
    cfg_scale: float = 1.0
    guidance: float | None = None
    label: int | None = None
    prompt: str | None = None
    t5_tokens: int | None = None
    rounds: Mapping[int, int] = field(default_factory=lambda: {1: 8})  # batch -> rounds
    variants: tuple[str, ...] = ()  # of latentc; default: all. An export of a large one takes minutes


@dataclass(frozen=True)
class Variant:
    """One way to use latentc: flags of `python -m export`, and flags of `latentc sample`."""

    export: tuple[str, ...] = ()
    sample: tuple[str, ...] = ()


@dataclass(frozen=True)
class Peer:
    """Another tool: the environment that it runs in (benchmarks/peers/NAME.txt), and whether it runs on torch."""

    environment: str
    on_torch: bool = True


@dataclass(frozen=True)
class Cold:
    """Whole processes, from exec to the first picture: interleaved, `rounds` of each tool after one that warms up."""

    model: str
    steps: int
    pages: str  # warm: files are in the page cache; dropped: the tool's packages and weights are not
    rounds: int = 5
    tools: tuple[str, ...] = ()  # default: all


VARIANTS: Mapping[str, Variant] = {
    "latentc": Variant(),
    "latentc-int8": Variant(export=("--precision", "int8")),
    "latentc-cached": Variant(export=("--cache",), sample=("--cache", "medium")),
    "latentc-int8-cached": Variant(export=("--precision", "int8", "--cache"), sample=("--cache", "medium")),
}

# With random weights a schedule of cached steps says nothing: these models have the others.
UNCACHED = ("latentc", "latentc-int8")

PEERS: Mapping[str, Peer] = {
    "diffusers": Peer("diffusers"),
    "torch.compile": Peer("diffusers"),
    "openvino": Peer("openvino"),
    "optimum-intel": Peer("optimum-intel"),
    "optimum-onnx": Peer("optimum-onnx"),
}

MODELS: Mapping[str, Model] = {
    model.name: model
    for model in (
        Model("emoji-dit", "dit", None, 64, 50, 4.0, label=40, rounds={1: 30, 2: 10, 4: 10, 8: 10}),
        Model(
            "emoji-flux",
            "flux",
            None,
            64,
            20,
            guidance=3.5,
            prompt=PROMPT,
            t5_tokens=64,
            rounds={1: 30, 2: 10, 4: 10, 8: 10},
        ),
        Model("dit-s-2", "dit", "dit-s-2", 256, 10, 4.0, label=207, rounds={1: 8, 4: 4}, variants=UNCACHED),
        Model("dit-b-2", "dit", "dit-b-2", 256, 10, 4.0, label=207, rounds={1: 7}, variants=UNCACHED),
        Model(
            "sd3-small",
            "sd3",
            "sd3-small",
            256,
            10,
            7.0,
            prompt=PROMPT,
            t5_tokens=256,
            rounds={1: 7},
            variants=UNCACHED,
        ),
    )
}

COLD: tuple[Cold, ...] = (
    Cold("emoji-dit", 4, "warm"),
    Cold("emoji-dit", 50, "warm"),
    Cold("emoji-dit", 4, "dropped", tools=("latentc", "diffusers", "openvino")),
    Cold("dit-b-2", 4, "warm"),
)

# What is aimed at, beside the best peer whose pictures are right.
FP32_TIMES_FASTER = 1.15
INT8_TIMES_FASTER = 2.0
COLD_TIMES_FASTER = 5.0  # than any peer that runs on torch
MEMORY_SHARE = 0.7
