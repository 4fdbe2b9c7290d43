"""Every family on the TensorRT that computes (tests/runtime/backends/tensorrt): the bits of ONNX Runtime.

What it shows for each: the profiles hold every shape of every graph, the oldest API suffices, and the loop is recorded.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from latentc.request import Asked, resolve

from tests.families.cases import CASES, NEGATIVES, PROMPTS, STEPS
from tests.families.conftest import Exported
from tests.families.test_pictures import each_case
from tests.runtime.backends.tensorrt.conftest import Machine, machine  # noqa: F401
from tests.runtime.backends.tensorrt.helpers import built, reference

VERSIONS = ("8.6.1", "11.4.0.106")


@each_case(*CASES)
def test_pictures_have_the_bits_of_onnx_runtime(
    machine: Machine,  # noqa: F811
    exported: Callable[[str], Exported],
    name: str,
    tmp_path: Path,
    recwarn: pytest.WarningsRecorder,
) -> None:
    made = exported(name)
    case = made.case
    for version in VERSIONS:
        cuda, _ = machine(version)
        path = Path(shutil.copytree(made.bundle, tmp_path / version, ignore=shutil.ignore_patterns("engines")))
        session, plain = built(path), reference(path)
        for size in case.sizes:
            guided = case.cfg_scale > 1 and not case.labels
            asked = {
                "label": str(case.labels[0]) if case.labels else None,
                "prompts": () if case.labels else PROMPTS[:2],
                "negative_prompts": NEGATIVES[:2] if guided else (),
                "cfg_scale": case.cfg_scale,
                "guidance": case.guidance,
                "solver": case.solvers[0],
                "steps": STEPS,
                "width": size[0],
                "height": size[1],
            }
            request = resolve(session.bundle.manifest, Asked(**asked))
            for seed in (1, 2):
                picture = session.draw(request, seed)
                np.testing.assert_array_equal(picture, plain.draw(request, seed))
            if case.img2img:
                over = resolve(session.bundle.manifest, Asked(**asked, init_image=True, strength=0.6))
                pixels = np.linspace(0, 1, 3 * size[0] * size[1], dtype=np.float32).reshape(1, 3, size[1], size[0])
                np.testing.assert_array_equal(session.draw(over, 3, pixels), plain.draw(over, 3, pixels))
        assert cuda.record.count("launch") == len(case.sizes)
