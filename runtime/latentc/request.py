"""Turns what the user asked for into what the bundle can do, or into one line that says why not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from latentc.errors import RequestError
from latentc.schema import LabelConditioning, Manifest, Table
from latentc.tiles import SHARED

MAX_IMAGES = 1024  # of one batch; more is a mistake, or a loop around this command
_MAX_LISTED = 12


@dataclass(frozen=True)
class Asked:
    """The options of one request as the user gave them; None is "not given"."""

    label: str | None = None
    prompts: Sequence[str] = ()
    negative_prompts: Sequence[str] = ()
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    solver: str | None = None
    cfg_scale: float | None = None
    guidance: float | None = None
    count: int | None = None  # pictures of each prompt
    strength: float | None = None
    init_image: bool = False
    tile: int | None = None  # pixels


@dataclass(frozen=True)
class Request:
    """What is to be drawn, all of it known to the bundle. Each picture has one label, or one prompt."""

    table: Table
    cfg_scale: float
    width: int
    height: int
    label: str = ""
    labels: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    negative_prompts: tuple[str, ...] | None = None  # one for each prompt; None: none was given
    guidance: float | None = None
    skipped: int | None = None  # steps that an initial image stands for; None: there is none
    tile: int | None = None  # pixels along a side of what is decoded at once; None: all

    @property
    def count(self) -> int:
        """How many pictures."""
        return len(self.labels) or len(self.prompts)

    @property
    def texts(self) -> tuple[str, ...]:
        """What each picture shows, in words."""
        return self.prompts or (self.label,) * len(self.labels)


def resolve(manifest: Manifest, asked: Asked, batch: int | None = None) -> Request:
    """The request, or RequestError. `batch` is the number of images that given latents ask for."""
    width, height = _size(manifest, asked)
    table = _table(manifest, asked.solver, asked.steps, (width, height))
    cfg_scale = manifest.defaults.cfg_scale if asked.cfg_scale is None else asked.cfg_scale
    if not math.isfinite(cfg_scale) or cfg_scale < 0:
        raise RequestError(f"--cfg-scale {cfg_scale} is out of range; give 0 or more (1 and less is no guidance)")
    if cfg_scale > 1 and not manifest.guided:
        raise RequestError(f"--cfg-scale is not for {manifest.name}, whose guidance is distilled; give --guidance")
    label = ""
    labels: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    negative: tuple[str, ...] | None = None
    if isinstance(manifest.conditioning, LabelConditioning):
        _refuse_text(manifest, asked)
        label, number = _label(manifest, manifest.conditioning, asked.label)
        labels = (number,) * _count(asked, 1, batch)
    else:
        prompts, negative = _prompts(manifest, asked, batch)
        if negative is not None and cfg_scale <= 1:
            raise RequestError(
                f"-n needs guidance, and --cfg-scale is {cfg_scale:g}; give --cfg-scale above 1, or leave -n away"
            )
    return Request(
        table=table,
        cfg_scale=cfg_scale,
        width=width,
        height=height,
        label=label,
        labels=labels,
        prompts=prompts,
        negative_prompts=negative,
        guidance=_guidance(manifest, asked.guidance),
        skipped=_skipped(manifest, asked, table),
        tile=_tile(manifest, asked.tile),
    )


def _refuse_text(manifest: Manifest, asked: Asked) -> None:
    """Options that mean nothing to a class-label model would be ignored in silence."""
    if asked.prompts or asked.negative_prompts:
        flag = "-p" if asked.prompts else "-n"
        raise RequestError(f"{flag} is for text-to-image models; {manifest.name} draws classes: give --label NAME")


def _count(asked: Asked, texts: int, batch: int | None) -> int:
    """Pictures of each text; all of them together are within bounds, and as many as given latents."""
    each = asked.count if asked.count is not None else max(1, (batch or texts) // texts)
    if texts > MAX_IMAGES:
        raise RequestError(f"{texts} times -p is out of range; give at most {MAX_IMAGES}")
    if not 1 <= each * texts <= MAX_IMAGES:
        raise RequestError(f"-b {each} is out of range; give 1 to {MAX_IMAGES // texts}")
    if batch is not None and each * texts != batch:
        got = f"-b {each}" if texts == 1 else f"{each * texts} pictures of {texts} prompts"
        raise RequestError(f"{got} does not fit --latents, which hold {batch}; leave -b away")
    return each


def _prompts(manifest: Manifest, asked: Asked, batch: int | None) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """A prompt and perhaps a negative prompt for each picture, the pictures of one prompt side by side."""
    if asked.label is not None:
        raise RequestError(f"--label is for class-label models; {manifest.name} draws from text: give -p TEXT")
    if not asked.prompts:
        raise RequestError(f"draw what? {manifest.name} draws from text: give -p TEXT")
    each = _count(asked, len(asked.prompts), batch)
    prompts = tuple(prompt for prompt in asked.prompts for _ in range(each))
    negative = tuple(asked.negative_prompts)
    if not negative:
        return prompts, None
    if len(negative) not in (1, len(asked.prompts)):
        raise RequestError(
            f"{len(negative)} times -n for {len(asked.prompts)} prompts; give it once, or once for each -p"
        )
    if len(negative) == 1:
        return prompts, negative * len(prompts)
    return prompts, tuple(text for text in negative for _ in range(each))


def _guidance(manifest: Manifest, given: float | None) -> float | None:
    """The scale of a guidance-distilled model."""
    if manifest.defaults.guidance is None:
        if given is not None:
            raise RequestError(f"--guidance is for guidance-distilled models; {manifest.name} has --cfg-scale")
        return None
    guidance = manifest.defaults.guidance if given is None else given
    if not math.isfinite(guidance) or guidance < 0:
        raise RequestError(f"--guidance {guidance} is out of range; give 0 or more")
    return guidance


def _size(manifest: Manifest, asked: Asked) -> tuple[int, int]:
    """Width and height in pixels."""
    own, sizes = (manifest.image.width, manifest.image.height), manifest.sizes
    width, height = (
        value if given is None else given for given, value in zip((asked.width, asked.height), own, strict=True)
    )
    if (width, height) == own:
        return own
    if sizes is None:
        raise RequestError(f"no size {width}x{height}; {manifest.name} draws {own[0]}x{own[1]} only")
    for flag, value in (("-W", width), ("-H", height)):
        if value % sizes.multiple or not sizes.minimum <= value <= sizes.maximum:
            most = sizes.maximum // sizes.multiple * sizes.multiple
            down = min(max(value // sizes.multiple * sizes.multiple, sizes.minimum), most)
            raise RequestError(
                f"{flag} {value} cannot be drawn; give a multiple of {sizes.multiple} from {sizes.minimum} to "
                f"{sizes.maximum}, such as {down}"
            )
    return width, height


def _tile(manifest: Manifest, given: int | None) -> int | None:
    """The side of a tile in pixels: a quarter of it is what the latents' sides are multiples of, or several."""
    if given is None:
        return None
    own, sizes = manifest.image, manifest.sizes
    if sizes is None:
        raise RequestError(
            f"--tile is for models of several sizes; {manifest.name} draws {own.width}x{own.height} only"
        )
    least = SHARED * sizes.multiple
    if given < least or given % least:
        nearest = max(round(given / least), 1) * least
        raise RequestError(f"--tile {given} cannot be decoded; give a multiple of {least}, such as {nearest}")
    return given


def _skipped(manifest: Manifest, asked: Asked, table: Table) -> int | None:
    """How many steps the initial image stands for: as diffusers' get_timesteps counts them."""
    if not asked.init_image:
        if asked.strength is not None:
            raise RequestError("--strength is for drawing over an image; give --init-image FILE too")
        return None
    if manifest.img2img is None or not table.img2img:
        raise RequestError(f"--init-image: this bundle of {manifest.name} has no encoder; export with --img2img")
    strength = manifest.img2img.strength if asked.strength is None else asked.strength
    if not 0 < strength <= 1:
        raise RequestError(f"--strength {strength} is out of range; give more than 0, and at most 1")
    steps = table.steps
    skipped = skipped_steps(steps, strength, manifest.img2img.rounds_up)
    if skipped >= steps:
        raise RequestError(
            f"--strength {strength} of {steps} steps is none; give --strength {math.ceil(100 / steps) / 100} or more"
        )
    return skipped


def skipped_steps(steps: int, strength: float, rounds_up: bool) -> int:
    """How many of N steps an initial image stands for: get_timesteps of diffusers' img2img pipelines.

    Those of flow models (`rounds_up`) keep N - int(N - N·strength) steps, all others int(N·strength).
    """
    if rounds_up:
        return int(max(steps - min(steps * strength, steps), 0))
    return steps - min(int(steps * strength), steps)


def _label(manifest: Manifest, conditioning: LabelConditioning, given: str | None) -> tuple[str, int]:
    """The name and number of a label that is given by either; names come first."""
    labels = conditioning.labels
    names = sorted(labels, key=lambda name: labels[name])
    if given is None:
        raise RequestError(f"which one? give --label NAME: {_listed(names)}")
    if given in labels:
        return given, labels[given]
    numbers = {number: name for name, number in reversed(labels.items())}
    numbers.setdefault(conditioning.null_label, "unconditional")
    if given.isascii() and given.isdigit() and len(given) < 10:
        if int(given) in numbers:
            return numbers[int(given)], int(given)
        raise RequestError(f"no label {given}; numbers are {min(numbers)} to {max(numbers)}")
    raise RequestError(f"no label {given!r}; {_nearest(given, names)}")


def _table(manifest: Manifest, solver: str | None, steps: int | None, size: tuple[int, int]) -> Table:
    """The table of a solver, by its short name or its diffusers class, a step count, and a size where it matters."""
    by_class = {record.scheduler: name for name, record in manifest.solvers.items()}
    name = manifest.defaults.solver if solver is None else by_class.get(solver, solver)
    own = [table for table in manifest.tables if table.solver == name]
    if not own:
        known = sorted({table.solver for table in manifest.tables})
        raise RequestError(f"no solver {name!r}; {_nearest(name, known)}; export with --solver adds others")
    wanted = manifest.defaults.steps if steps is None else steps
    counts = sorted({table.steps for table in own})
    if wanted not in counts:
        todo = f"export with --steps {wanted}" if wanted > 0 else "give one of these"
        raise RequestError(f"no table for {wanted} steps of {name}; this bundle has {_listed(counts)}: {todo}")
    for table in own:
        if table.steps == wanted and table.size in (None, size):
            return table
    text = f"{size[0]}x{size[1]}"
    sizes = [f"{table.size[0]}x{table.size[1]}" for table in own if table.steps == wanted and table.size]
    raise RequestError(
        f"no table for {text}; {name} depends on the size, and this bundle has {_listed(sizes)}: "
        f"export with --size {text}"
    )


def _nearest(given: str, known: list[str]) -> str:
    """Did you mean this one, and what there is."""
    import difflib  # 7 ms that only a mistake has to pay

    near = difflib.get_close_matches(given.lower(), known, n=1)
    return (f"did you mean {near[0]}? " if near else "") + f"this bundle has {_listed(known)}"


def _listed(values: list[str] | list[int]) -> str:
    shown = ", ".join(str(value) for value in values[:_MAX_LISTED])
    return shown if len(values) <= _MAX_LISTED else f"{shown}, … ({len(values)} in all; latentc inspect lists them)"
