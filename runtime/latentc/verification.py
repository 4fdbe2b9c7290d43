"""Compares this machine's computations with the outputs that torch left in the bundle.

Twice for each component: the graphs, run node by node without optimisation, so that a difference
is the export's; and the engines, as `latentc sample` would run them, so that a difference is the backend's.
Then the whole loop. The bounds are the export's own, from parity.json.
"""

from collections.abc import Iterator

import msgspec
import numpy as np

from latentc.backends.protocol import Array, Backend, Engine
from latentc.bundle import Bundle
from latentc.engines import load_engines
from latentc.errors import BundleError
from latentc.parity import psnr_db, relative_l2
from latentc.sampler import run_once, sample
from latentc.schema import Figure, Parity
from latentc.table import table_from_bundle
from latentc.tensors import tensor, tensors_from_bytes
from latentc.trajectory import noise_from_seed, trajectory_of_labels

TRAJECTORY = "trajectory"


def measured(bundle: Bundle, backend: Backend) -> Iterator[Figure]:
    """The figures of parity.json, measured again here; each is yielded when it is known."""
    parity = bundle.parity()
    references = tensors_from_bytes(bundle.view(parity.references), parity.references)
    compared = {figure.tensor.partition("/")[0] for figure in parity.figures}
    expected = {*bundle.manifest.graphs, TRAJECTORY}
    if compared != expected:  # a report that leaves something out would pass by silence
        odd = ", ".join(sorted(compared ^ expected))
        raise BundleError(f"{bundle.root}: parity.json must compare every graph and the trajectory; look at {odd}")

    plain = {name: backend.load_graph(bundle.graph(name), optimise=False) for name in bundle.manifest.graphs}
    yield from _components(parity, references, backend, plain, "torch and the graph, run node by node")
    loaded = load_engines(bundle, backend)
    how = "built engine" if loaded.built else "optimised graph"
    yield from _components(parity, references, backend, loaded.engines, f"torch and the {how}")
    yield from _trajectory(bundle, parity, references, backend, loaded.engines, f"torch's pipeline and the loop, {how}")


def _components(
    parity: Parity, references: dict[str, Array], backend: Backend, engines: dict[str, Engine], against: str
) -> Iterator[Figure]:
    for component, engine in engines.items():
        figures = [figure for figure in parity.figures if figure.tensor.partition("/")[0] == component]
        inputs = _tensors_below(references, f"{component}/input/")
        expected = _tensors_below(references, f"{component}/output/")
        missing = [figure.tensor for figure in figures if figure.tensor.partition("/")[2] not in expected]
        if missing:
            raise BundleError(f"{parity.references} has no output {', '.join(missing)}")
        actual = run_once(backend, engine, inputs, {name: values.shape for name, values in expected.items()})
        for figure in figures:
            name = figure.tensor.partition("/")[2]
            yield _measured(figure, actual[name], expected[name], against)


def _tensors_below(references: dict[str, Array], prefix: str) -> dict[str, Array]:
    return {key.removeprefix(prefix): value for key, value in references.items() if key.startswith(prefix)}


def _trajectory(
    bundle: Bundle,
    parity: Parity,
    references: dict[str, Array],
    backend: Backend,
    engines: dict[str, Engine],
    against: str,
) -> Iterator[Figure]:
    figures = [figure for figure in parity.figures if figure.tensor.startswith(f"{TRAJECTORY}/")]
    record = next((t for t in bundle.manifest.tables if (t.solver, t.steps) == (parity.solver, parity.steps)), None)
    if record is None:
        raise BundleError(f"{bundle.root}: parity.json is of {parity.solver} {parity.steps}, which has no table")
    table = table_from_bundle(bundle, record)
    latent = bundle.manifest.latent
    shape = (len(parity.labels), latent.channels, latent.height, latent.width)
    noise = tensor(references, f"{TRAJECTORY}/noise", (1 + table.noise_draws, *shape), parity.references)
    for figure in figures:
        name = figure.tensor.partition("/")[2]
        expected = _reference(references, figure.tensor, parity.references)
        if name == "noise":
            yield _measured(
                figure, noise_from_seed(parity.seed, shape, table.noise_draws), expected, "torch's generator"
            )
            continue
        trajectory = trajectory_of_labels(
            table, noise, parity.labels, bundle.manifest.conditioning.null_label, parity.cfg_scale
        )
        image = sample(backend, engines, bundle.manifest, trajectory)
        yield _measured(figure, image, expected, against)


def _reference(references: dict[str, Array], key: str, file: str) -> Array:
    if key not in references:
        raise BundleError(f"{file} has no tensor {key}")
    return references[key]


def _measured(figure: Figure, actual: Array, expected: Array, against: str) -> Figure:
    if actual.shape != expected.shape:
        raise BundleError(
            f"{figure.tensor} is {list(actual.shape)} here and {list(expected.shape)} in torch's reference"
        )
    got, want = actual.astype(np.float64), expected.astype(np.float64)
    value = relative_l2(got, want) if figure.measure == "relative_l2" else psnr_db(got, want)
    return msgspec.structs.replace(figure, value=value, against=against)
