"""Tests that share what is expensive to make run in one worker."""

import pytest


def test_xdist_sees_the_group_of_a_test(request: pytest.FixtureRequest) -> None:
    """pytest 9.2 with xdist 3.8 does not: every worker then exports every file's bundles again, and nothing says so."""
    if not request.config.getoption("loadgroup", default=False):
        pytest.skip("not run by xdist with --dist loadgroup, as make test does")
    assert request.node.nodeid.endswith("@tests/test_groups.py")
