"""Cached steps in the runtime: the loop against numpy, levels, memory, verification, and every refusal."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from latentc.backends import open_backend
from latentc.bundle import open_bundle
from latentc.cli import main
from latentc.engines import load_engines
from latentc.errors import BundleError, RequestError
from latentc.manifest_check import problems
from latentc.memory import MEMORY, predicted
from latentc.request import Asked, Request, resolve
from latentc.schema import CachedCalls, Manifest, Table
from latentc.session import open_session
from latentc.stages import OneAtATime
from latentc.trajectory import noise_from_seed

from tests.runtime import toy, toy_cache

SHAPE = (2, toy.CHANNELS, toy.SIZE, toy.SIZE)
SEED = 5


@pytest.fixture(scope="module")
def cached(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy bundle with a step cache; no test may change it."""
    return toy_cache.add_step_cache(Path(shutil.copytree(pristine, tmp_path_factory.mktemp("cache") / "toy")))


@pytest.fixture
def own(cached: Path, tmp_path: Path) -> Path:
    """A copy that the test may change."""
    return Path(shutil.copytree(cached, tmp_path / "toy"))


def drawn(root: Path, level: str | None, solver: str = "plain", steps: int = 4, **session: Any) -> toy.Floats:
    opened = open_session(root, "onnxruntime", threads=1, **session)
    asked = Asked(label="cat", count=2, solver=solver, steps=steps, cfg_scale=1.5, cache=level)
    return opened.draw(resolve(opened.bundle.manifest, asked), SEED)


@pytest.mark.parametrize(("solver", "steps"), [("plain", 2), ("plain", 4), ("heun", 3), ("sde", 3)])
@pytest.mark.parametrize("level", ["slight", "strong"])
def test_pictures_equal_the_loop_in_numpy(cached: Path, solver: str, steps: int, level: str) -> None:
    noise = noise_from_seed(SEED, SHAPE, toy.table_of(solver, steps).noise_draws).draws
    calls = toy_cache.CALLS[level][solver, steps]
    picture = drawn(cached, level, solver, steps)
    expected = toy_cache.toy_picture(solver, steps, noise, (0, 0), 1.5, calls)
    np.testing.assert_allclose(picture, expected, rtol=0, atol=1e-5)
    full = toy_cache.toy_picture(solver, steps, noise, (0, 0), 1.5, ())
    assert (np.abs(expected - full).max() > 1e-3) == bool(calls), "a stale residual must show, or nothing is tested"


def test_without_a_level_the_bits_are_those_of_a_bundle_without_a_cache(pristine: Path, cached: Path) -> None:
    for solver, steps in (("plain", 4), ("sde", 3)):
        np.testing.assert_array_equal(drawn(cached, None, solver, steps), drawn(pristine, None, solver, steps))


@pytest.mark.parametrize("level", [None, "slight", "strong"])
def test_little_memory_draws_the_same(cached: Path, level: str | None) -> None:
    """Another layout of convolutions rounds otherwise; a stale residual differs by 1e-3 and more (see above)."""
    np.testing.assert_allclose(drawn(cached, level, memory="low"), drawn(cached, level), rtol=0, atol=1e-6)


def test_the_two_engines_of_the_loop_are_open_together_and_no_others() -> None:
    log: list[str] = []

    class Engine:
        def __init__(self, name: str) -> None:
            self.name = name
            log.append(f"+{name}")

        def close(self) -> None:
            log.append(f"-{self.name}")

    engines = OneAtATime(("schedule", "denoise", "denoise_cached", "decode"), Engine)  # type: ignore[arg-type]
    for name in ("schedule", "denoise", "denoise_cached", "denoise", "denoise_cached", "decode", "denoise"):
        engines[name]
    assert log == [
        "+schedule", "-schedule", "+denoise", "+denoise_cached", "-denoise", "-denoise_cached", "+decode", "-decode",
        "+denoise",
    ]  # fmt: skip


def test_the_cached_engine_is_left_away_where_nobody_asks_for_it(cached: Path) -> None:
    bundle, backend = open_bundle(cached), open_backend("onnxruntime", threads=1)
    loaded = load_engines(bundle, backend, without=frozenset({"denoise_cached"}))
    assert set(loaded.engines) == {"denoise", "decode"}
    for memory in MEMORY:
        assert "denoise_cached" not in predicted(bundle.manifest, memory).stages


def test_weights_are_one_file(cached: Path) -> None:
    bundle = open_bundle(cached)
    full, reused = bundle.graph("denoise"), bundle.graph("denoise_cached")
    assert full.weights_name == reused.weights_name == "denoise.weights"
    assert full.weights is reused.weights, "mapped once"
    assert sorted(path.name for path in (cached / "graphs").glob("*.weights")) == ["decode.weights", "denoise.weights"]


def test_an_initial_image_leaves_the_first_calls_away() -> None:
    cached = {"slight": CachedCalls(calls=(1, 2, 4, 5, 7), psnr_db=40.0)}
    table = Table(solver="plain", steps=9, calls=9, noise_draws=0, file="", cached=cached)
    request = Request(table=table, cfg_scale=1.0, width=8, height=8, cache="slight")
    assert request.cached_calls(9) == (1, 2, 4, 5, 7)
    assert request.cached_calls(5) == (1, 3), "call 4 of nine is the first of five, and a full one"
    assert request.cached_calls(1) == ()
    assert replace(request, cache=None).cached_calls(9) == ()


@pytest.mark.parametrize(
    ("bundle_name", "level", "message"),
    [
        ("pristine", "slight", r"--cache slight: this bundle of toy has no cached step; export with --cache"),
        ("cached", "extreme", r"no cache level 'extreme'; this bundle has slight, strong"),
    ],
)
def test_refusals_are_one_line(request: Any, bundle_name: str, level: str, message: str) -> None:
    manifest = open_bundle(request.getfixturevalue(bundle_name)).manifest
    with pytest.raises(RequestError, match=message):
        resolve(manifest, Asked(label="cat", cache=level))


def test_sample_and_its_lines_and_inspect_and_bench(
    cached: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sample", str(cached), "--label", "cat", "-s", "1", "-o", str(tmp_path / "a.png"), "--cache", "strong"]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["cache"], report["calls"], report["cached_calls"]) == ("strong", 4, 3)
    assert main(arguments) == 0
    assert "cache strong (3 of 4 calls)" in capsys.readouterr().out
    assert b"Step cache: strong" in (tmp_path / "a.png").read_bytes()
    assert main(["inspect", str(cached)]) == 0
    shown = capsys.readouterr().out
    assert "a cached step leaves blocks 2 to 2 of 3 out: 40.0 % of a full step's FLOPs" in shown
    assert "3 of 4 calls" in shown
    assert main(["bench", str(cached), "--cache", "strong", "--batch", "1", "--repeat", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["cache"], report["cached_calls"]) == ("strong", 3)


def test_a_line_of_stdin_asks_for_a_level(cached: Path) -> None:
    from latentc.commands.serve_lines import answer_to

    session = open_session(cached, "onnxruntime", threads=1)
    answers = [
        answer_to(json.dumps(line).encode(), session, False, "normal")
        for line in (
            {"label": "cat", "seed": 1, "png": "base64"},
            {"label": "cat", "seed": 1, "png": "base64", "cache": "strong"},
            {"label": "cat", "seed": 1, "png": "base64", "cache": "none"},
        )
    ]
    assert [getattr(answer, "cached_calls", None) for answer in answers] == [0, 3, None]
    assert "no cache level 'none'" in answers[2].error  # type: ignore[union-attr]


def change(root: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """What a tamperer who rehashes does."""
    made = json.loads((root / "manifest.json").read_text())
    edit(made)
    toy.seal(root, msgspec.convert(made, Manifest))


def test_verify_passes(cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(cached), "--backend", "onnxruntime"]) == 0
    shown = capsys.readouterr().out
    for name in (
        "denoise_cached/prediction",
        "denoise/residual_0",
        "image@slight",
        "image@strong",
        "full_steps@slight",
    ):
        assert name in shown, name


def test_verify_catches_a_schedule_that_was_changed(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own / "manifest.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"calls":[2]', b'"calls":[1]', 1))
    assert path.read_bytes() != whole
    assert main(["verify", str(own), "--backend", "onnxruntime"]) == 1
    assert "manifest.json is damaged" in capsys.readouterr().err

    def more(made: dict[str, Any]) -> None:
        for table in made["tables"]:
            table["cached"]["slight"]["calls"] = list(range(1, table["calls"]))

    path.write_bytes(whole)
    change(own, more)
    assert main(["verify", str(own), "--backend", "onnxruntime"]) == 3
    assert "trajectory/image@slight: psnr_db" in capsys.readouterr().err


def test_verify_wants_a_figure_of_every_level(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own / "parity.json"
    report = json.loads(path.read_text())
    report["figures"] = [figure for figure in report["figures"] if figure["tensor"] != "trajectory/image@strong"]
    path.write_text(json.dumps(report))
    toy.seal(own, toy.read_manifest(own))
    assert main(["verify", str(own), "--backend", "onnxruntime"]) == 1
    assert "must compare every level of the step cache; look at trajectory/image@strong" in capsys.readouterr().err


def test_verify_refuses_a_bound_below_the_level(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own / "parity.json"
    report = json.loads(path.read_text())
    for figure in report["figures"]:
        figure["bound"] = 0.1 if figure["tensor"] == "trajectory/image@strong" else figure["bound"]
    path.write_text(json.dumps(report))
    toy.seal(own, toy.read_manifest(own))
    assert main(["verify", str(own), "--backend", "onnxruntime"]) == 1
    assert "bounds trajectory/image@strong below the level" in capsys.readouterr().err


def _without_graph(made: dict[str, Any]) -> None:
    del made["graphs"]["denoise_cached"]


def _without_cache(made: dict[str, Any]) -> None:
    made["step_cache"] = None


def _calls(*calls: int) -> Callable[[dict[str, Any]], None]:
    def edit(made: dict[str, Any]) -> None:
        made["tables"][1]["cached"]["slight"]["calls"] = list(calls)

    return edit


def _without_level(made: dict[str, Any]) -> None:
    del made["tables"][2]["cached"]["strong"]


def _other_residual(made: dict[str, Any]) -> None:
    made["step_cache"]["residuals"] = ["residual_1"]


def _foreign_input(made: dict[str, Any]) -> None:
    made["graphs"]["denoise_cached"]["inputs"][0]["name"] = "hidden"


def _no_blocks(made: dict[str, Any]) -> None:
    made["step_cache"]["end_block"] = 1


def _hostile_level(made: dict[str, Any]) -> None:
    made["step_cache"]["levels"]["strong"] = 1e300


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_without_graph, "without that graph"),
        (_without_cache, "without a step cache"),
        (_calls(0, 2), "cached calls of plain 4 (slight) that are out of range"),
        (_calls(2, 4), "out of range"),
        (_calls(2, 1), "out of range"),
        (_calls(2, 2), "out of range"),
        (_without_level, "levels of the step cache are not the bundle's"),
        (_other_residual, "which are not prediction and residuals"),
        (_foreign_input, "which are not those of denoise and residuals"),
        (_no_blocks, "blocks that are out of range"),
        (_hostile_level, "a level of the step cache that is out of range"),
    ],
)
def test_what_the_types_cannot_say(cached: Path, edit: Callable[[dict[str, Any]], None], message: str) -> None:
    made = msgspec.to_builtins(toy.read_manifest(cached))
    assert next(problems(msgspec.convert(made, Manifest), "parity.json"), None) is None
    edit(made)
    found = next(problems(msgspec.convert(made, Manifest), "parity.json"), None)
    assert found is not None
    assert message in found


def test_a_bundle_that_fails_the_check_is_not_opened(own: Path) -> None:
    change(own, _calls(0))
    with pytest.raises(BundleError, match="out of range"):
        open_bundle(own)
