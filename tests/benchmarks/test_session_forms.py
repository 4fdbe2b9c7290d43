"""Every form of a comparison runs the bundle's graphs, and a ratio is one of medians."""

from pathlib import Path

import pytest
from latentc.bundle import open_bundle

from benchmarks.session_forms import compared, forms_of


def test_forms_of_a_guided_bundle(random_dit_bundle: Path) -> None:
    forms = forms_of(random_dit_bundle, open_bundle(random_dit_bundle), threads=2)
    names = ["guidance, 1 picture", "step, 2 pictures", "step, 4 pictures", "step, 8 pictures", "decoder's layout"]
    assert list(forms)[:5] == names
    for name, comparison in forms.items():
        results = compared(comparison, repeat=3).values()
        assert len(results) == (2 if name == names[0] else 1)
        for found in results:
            assert found["faster_by"] == pytest.approx(found["ms"][1] / found["ms"][0])
            assert found["quartiles"][0] <= found["quartiles"][1]
