"""The bundle's manifest and parity report, as strict types.

The schema belongs to its reader: `export` imports these types and writes what they say. Decoding
refuses unknown fields, missing fields and wrong types; docs/bundle-format.md gives the reasons.
"""

from typing import Literal, TypeAlias

import msgspec

SCHEMA_VERSION = 4

DType: TypeAlias = Literal["float32", "float16", "int64", "int32", "bool"]
Dim: TypeAlias = int | str  # a number, or the name of a symbolic dimension
Precision: TypeAlias = Literal["fp32", "fp16", "int8"]  # int8: of the loop, the other graphs are fp32
RunsOnce: TypeAlias = Literal["process", "request", "step"]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Frozen, keyword-only, and closed: an unknown field is an error, not a guess."""


class TensorSpec(Strict, frozen=True):
    """One input or output of a graph."""

    name: str
    dtype: DType
    shape: tuple[Dim, ...]


class Graph(Strict, frozen=True):
    """One ONNX file with its weights beside it, and what it costs.

    `flops` counts multiply-adds as two, for one run at batch 1, one guidance branch and the
    bundle's default size. `activation_bytes` is what the values between the nodes hold at their
    peak, inputs and outputs included: for one picture at the default size, steps and guidance, in
    the precision that the target computes in. `int8_bytes` is the share of `weight_bytes` that is int8 matrices.
    """

    file: str
    weights: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    runs_once_per: RunsOnce
    nodes: int
    parameters: int
    weight_bytes: int
    int8_bytes: int
    flops: int
    activation_bytes: int


class CachedCalls(Strict, frozen=True):
    """The calls of a table that run `denoise_cached`: ascending, never 0. `psnr_db` is how far the picture was from
    that of full steps at export, 200 where no call is cached.

    A request that skips steps (img2img) leaves the first calls away; its own first is always a full one.
    """

    calls: tuple[int, ...]
    psnr_db: float


class Table(Strict, frozen=True):
    """A solver at one step count, as numbers (DESIGN 3): `file` holds float32 `input_rows`
    [calls, slots], `output_row` [slots] and `timesteps` [calls], where slots = 1 + calls +
    noise_draws: the unit noise, the model outputs, the noise draws.

    With `img2img` the file has the same three again below each `img2img/K/`, for a request that skips the first K
    steps: fewer calls, perhaps fewer draws, and one slot more, the last: the latents of the initial image.
    """

    solver: str
    steps: int
    calls: int
    noise_draws: int
    file: str
    size: tuple[int, int] | None = None  # width, height in pixels, where the solver depends on them
    img2img: bool = False
    cached: dict[str, CachedCalls] = {}  # by level of the step cache


class Solver(Strict, frozen=True):
    """A scheduler that the bundle has tables of, with the settings that they were read under."""

    scheduler: str  # the diffusers class
    settings: dict[str, bool | int | float | str | list[float] | None]


class ScheduleInput(Strict, frozen=True):
    """How an input of the schedule graph is fed when all N steps run as one batch.

    stack: the values of the steps, one below the other; tile: N copies along the first axis; once: as it is.
    """

    name: str
    feed: Literal["stack", "tile", "once"]


class Hoisting(Strict, frozen=True):
    """What left the loop, and what one step would cost with nothing hoisted.

    Step i reads block i of the schedule graph's output: float32 [rows_per_step, row_width]. Without a
    schedule graph `row_width` is 0.
    """

    rows_per_step: Literal["one", "batch"]  # one for all images, or one for each image and guidance branch
    row_width: int
    schedule_inputs: tuple[ScheduleInput, ...]
    whole_nodes: int
    whole_parameters: int
    whole_weight_bytes: int
    whole_flops: int


class StepCache(Strict, frozen=True):
    """Steps without their middle: graph `denoise_cached` has no blocks `first_block` up to, but not including,
    `end_block` of `blocks`. It takes what they added to the residual stream in the last full step, which `denoise`
    returns: `residuals`, outputs of the one and inputs of the other, float32.

    A level's number is the least PSNR, in dB, of a picture drawn with it against one of full steps.
    """

    first_block: int
    end_block: int
    blocks: int
    residuals: tuple[str, ...]
    levels: dict[str, float]


class Latent(Strict, frozen=True):
    """The latents at the default size: [batch, channels, height, width], float32.

    Height and width are multiples of `multiple` (of a patch, of a U-Net's deepest level).
    """

    channels: int
    height: int
    width: int
    multiple: int = 1


class Image(Strict, frozen=True):
    """The picture at the default size, in pixels."""

    channels: int
    height: int
    width: int


class LabelConditioning(Strict, frozen=True, tag_field="kind", tag="label"):
    """Class labels by name; several names may share a number. `null_label` is the unconditional one."""

    labels: dict[str, int]
    null_label: int


class TextRule(Strict, frozen=True):
    """From a prompt to token ids: `lower_strip` is Python's str.lower().strip(), then `prefix` is put before it."""

    length: int
    prefix: str = ""
    lower_strip: bool = False


class TextEncoder(Strict, frozen=True):
    """A text encoder: the graph of the same name, and the tokenizer (a file of the `tokenizers` format) before it."""

    graph: str
    tokenizer: str
    pad_id: int
    prompt: TextRule
    negative: TextRule


class TextConditioning(Strict, frozen=True, tag_field="kind", tag="text"):
    """Prompts. The unconditional branch is the negative prompt, "" if none is given, or zeros if `zero_null`."""

    encoders: tuple[TextEncoder, ...]
    zero_null: bool


class SizeRange(Strict, frozen=True):
    """Width and height that can be drawn, in pixels: multiples of `multiple`, bounds included."""

    multiple: int
    minimum: int
    maximum: int


class Img2Img(Strict, frozen=True):
    """Drawing over a given image. Of N steps int(N·strength) are run, or the least that are as many (`rounds_up`)."""

    strength: float  # what a request gets when it does not say
    rounds_up: bool


class Defaults(Strict, frozen=True):
    """What a request gets when it does not say. `guidance` is that of a guidance-distilled model."""

    solver: str
    steps: int
    cfg_scale: float
    guidance: float | None = None


class FileRecord(Strict, frozen=True):
    """What a file of the bundle must be, to the byte."""

    sha256: str
    num_bytes: int


class Provenance(Strict, frozen=True):
    """Where the bundle came from; no dates and no absolute paths, so that equal exports are equal bytes."""

    source: str
    source_sha256: dict[str, str]
    versions: dict[str, str]


class Manifest(Strict, frozen=True):
    """BUNDLE/manifest.json. `files` names every file of the bundle but the manifest and engines/."""

    schema_version: int
    name: str
    family: str
    pipeline: str
    precision: Precision
    target: str  # what the graphs' opset and operators were written for
    latent: Latent
    image: Image
    conditioning: LabelConditioning | TextConditioning
    guided: bool  # whether the pipeline has classifier-free guidance at all
    sizes: SizeRange | None  # None: the default size only
    img2img: Img2Img | None
    graphs: dict[str, Graph]
    hoisting: Hoisting
    solvers: dict[str, Solver]
    tables: tuple[Table, ...]
    defaults: Defaults
    files: dict[str, FileRecord]
    provenance: Provenance
    step_cache: StepCache | None = None
    # The first channels of the prediction, which are Σ guidance_weights[k] · output[k]; the others are of branch 0.
    # None: not said, as in older bundles.
    guided_channels: int | None = None


class Figure(Strict, frozen=True):
    """One comparison: `value` of `measure` on `tensor` must be within `bound` (at most for an
    error, at least for a PSNR).
    """

    tensor: str
    measure: Literal["relative_l2", "psnr_db"]
    value: float
    bound: float
    against: str  # what it was compared with, in words

    @property
    def holds(self) -> bool:
        """Whether the bound holds; NaN never does."""
        return self.value <= self.bound if self.measure == "relative_l2" else self.value >= self.bound


class Unverified(Strict, frozen=True):
    """What was not compared, and why: a graph whose phases were not run (`GRAPH/phases`), or the `trajectory`."""

    tensor: str
    reason: str


class Parity(Strict, frozen=True):
    """BUNDLE/parity.json: what was compared at export, and how far apart it was.

    `references` is a safetensors file with the inputs and torch's own outputs, so that an engine
    on a device can be compared with torch where there is none.
    """

    seed: int
    steps: int
    solver: str
    cfg_scale: float
    guidance: float | None
    labels: tuple[int, ...]
    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...] | None
    width: int
    height: int
    skipped: int | None  # steps that the initial image stands for, where drawing over one was compared
    references: str
    figures: tuple[Figure, ...]
    phases: tuple[Figure, ...]  # each of the compiler's phases against the one before it
    unverified: tuple[Unverified, ...] = ()  # what the export had not the memory for
