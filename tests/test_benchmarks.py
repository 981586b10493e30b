"""The arithmetic of the benchmarks' tables; nothing here is timed."""

from argparse import Namespace

import pytest
from benchmarks import measure


def test_exponent_of_a_power_law():
    sizes = [10, 100, 3000]
    assert measure.exponent(sizes, [5 * size**1.5 for size in sizes]) == pytest.approx(1.5)


def test_alternate_calls_in_turn():
    called = []
    runs = {name: lambda name=name: called.append(name) or len(called) for name in "ab"}
    assert measure.alternate(runs, 2) == {"a": [1, 3], "b": [2, 4]}
    assert called == list("abab")


def test_the_fastest_variant_is_that_of_the_highest_rate():
    assert measure.fastest({"slow": lambda: 1.0, "fast": lambda: 2.0})[0] == "fast"


def test_spread_is_the_median_and_the_range():
    assert measure.spread([3.0, 1.0, 2.0]) == "2.00 (1.00 to 3.00)"
    assert measure.spread([123456.7]) == "123,457 (123,457 to 123,457)"


def test_a_pattern_that_no_row_contains_is_refused():
    measure.check_some(["train: pythae"], Namespace(only="pythae"))
    with pytest.raises(SystemExit, match="No row contains 'pytae'"):
        measure.check_some(["train: pythae"], Namespace(only="pytae"))
