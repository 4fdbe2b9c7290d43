"""The tables behind ADR 0022 and docs/int8.md: rows of a decoder's convolutions, and of many pictures."""

from pathlib import Path

import pytest
from latentc.parity import psnr_db
from latentc.session import open_session

from benchmarks.eight_bit_decoder import measured
from benchmarks.eight_bit_pictures import drawn, spread
from tests.export.int8.test_decoder import decoder, latents


def test_a_row_for_each_wide_convolution_and_one_for_all() -> None:
    *rows, together = measured(decoder(), latents(0))
    assert [row["name"] for row in rows] == ["conv0", "conv1"]
    assert all(row["own"] == row["carried"] > 0 for row in rows)  # no branches there
    assert together["psnr_db"] < max(row["psnr_db"] for row in rows) < 100


def test_pictures_are_pairs_of_the_same_request(random_dit_bundle: Path) -> None:
    session = open_session(random_dit_bundle, "onnxruntime", threads=1)
    pairs = drawn(session, session, 2)
    assert [psnr_db(*pair) for pair in pairs] == [200.0, 200.0]
    assert psnr_db(pairs[0][0], pairs[1][0]) < 60  # another seed, another label
    found = spread([50.0, 34.0, 40.0, 35.0])
    assert (found["median_db"], found["least_db"]) == (37.5, 34.0)
    assert found["share_at_35_db"] == pytest.approx(0.75)
