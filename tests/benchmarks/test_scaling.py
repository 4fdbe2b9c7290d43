"""Scaling: the points, the exponents of known laws, and one measured point."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from latentc.session import open_session

from benchmarks import scaling
from benchmarks.scaling import AXES, Point, exponents, loop_ms, peak_of_one, points, slope, write_source
from tests.runtime import toy


def test_every_axis_goes_through_the_base_and_nothing_is_measured_twice() -> None:
    found = points()
    assert len(found) == len(set(found)) == sum(len(values) - 1 for values in AXES.values()) + 1
    assert Point() in found
    for point in found:
        assert sum(value != asdict(Point())[axis] for axis, value in asdict(point).items()) <= 1


def test_a_slope_is_the_exponent() -> None:
    assert slope([1, 2, 8], [3, 12, 192]) == 2.0
    assert slope([1, 2, 8], [5, 5, 5]) == 0.0


def row(point: Point) -> dict[str, float]:
    """Time follows FLOPs, but for tokens: there a third of the rate is left at the end."""
    flops = 100 * point.tokens * point.depth * point.batch * point.steps + point.tokens**2
    late = 3.0 if point.tokens == 4096 else 1.0
    return {**asdict(point), "flops": flops, "loop_ms": late * flops / 1e6, "peak_bytes": 7 * point.tokens**2}


def test_where_time_leaves_flops_is_seen() -> None:
    found = exponents([row(point) for point in points()])
    assert found["tokens"]["time_against_flops"] == 3.0
    assert found["tokens"]["time_at_the_end"] > found["tokens"]["flops_at_the_end"] + 0.7
    assert found["tokens"]["memory_at_the_end"] == 2.0
    assert found["batch"]["time_against_flops"] == 1.0
    assert found["batch"]["time_at_the_end"] == found["batch"]["flops_at_the_end"]
    assert found["depth"]["memory_at_the_end"] == 0.0


@pytest.mark.parametrize("tokens", [64, 4096])
def test_a_source_has_as_many_tokens(tmp_path: Path, tokens: int) -> None:
    config = json.loads((write_source(tmp_path / "source", tokens, 1) / "transformer/config.json").read_text())
    assert (config["sample_size"] // config["patch_size"]) ** 2 == tokens
    assert config["num_attention_heads"] * config["attention_head_dim"] == scaling.WIDTH
    vae = json.loads((tmp_path / "source/vae/config.json").read_text())
    assert vae["block_out_channels"] == [8]


def test_a_point_is_measured(tmp_path: Path) -> None:
    bundle = toy.write_bundle(tmp_path / "toy")
    session = open_session(bundle, "onnxruntime", threads=1)
    point = Point(batch=2, steps=4)
    assert 0 < loop_ms(session, point) < 60_000
    with pytest.raises(ValueError, match="no table for 5 steps"):
        loop_ms(session, replace(point, steps=5))
    assert peak_of_one(bundle, point, 1) > 0
