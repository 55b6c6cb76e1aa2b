"""Slurm's lists of nodes, both ways."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import nodelist
from launcher.nodelist import expand, fold

HEADS = st.sampled_from(["a", "gpu-", "n0", "b-x", "3dgi", "cn-d", "r1c2-"])
NUMBERS = st.integers(0, 1100)
NAMES = st.lists(
    st.one_of(
        HEADS.map(lambda head: head + "q"),
        st.builds(
            lambda head, n, w, end: f"{head}{n:0{w}}{end}",
            HEADS,
            NUMBERS,
            st.integers(1, 4),
            st.sampled_from(["", "", "-ib", "x"]),
        ),
    ),
    max_size=40,
)


def test_the_examples_of_the_module_are_true() -> None:
    assert doctest.testmod(nodelist) == (0, 2)


@given(NAMES)
def test_folding_and_expanding_are_inverses(names: list[str]) -> None:
    assert list(expand(fold(names))) == names


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 5))
def test_a_row_of_nodes_folds_into_one_range(first: int, more: int, width: int) -> None:
    names = [f"n{n:0{width}}" for n in range(first, first + more + 2)]
    assert fold(names) == f"n[{names[0][1:]}-{names[-1][1:]}]"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a[01-03,7],b-[1-2]-x[0-1]", "a01 a02 a03 a7 b-1-x0 b-1-x1 b-2-x0 b-2-x1"),
        ("htc-1024-n[0-3]", "htc-1024-n0 htc-1024-n1 htc-1024-n2 htc-1024-n3"),
        ("3dgi[1-2],100plus", "3dgi1 3dgi2 100plus"),
        ("n[08-11]", "n08 n09 n10 n11"),
        ("n[8-11]", "n8 n9 n10 n11"),
        ("r[1-2]n[1-2]-ib", "r1n1-ib r1n2-ib r2n1-ib r2n2-ib"),
        ("n5", "n5"),
        ("(null)", ""),
        ("None assigned", ""),
        ("", ""),
    ],
)
def test_a_list_stands_for_its_names(text: str, names: str) -> None:
    assert expand(text) == tuple(names.split())


@pytest.mark.parametrize(
    "text",
    [
        "a[",
        "a]",
        "a[1",
        "a[[1]]",
        "a[3-1]",
        "a[1-]",
        "a[x]",
        "a[]",
        "a,,b",
        ",",
        "a b",
        "a[1-99999999]",
    ],
)
def test_a_broken_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"list of nodes|bracket|range|stands for|empty"):
        expand(text)


def test_lists_that_multiply_are_refused_before_they_fill_memory() -> None:
    with pytest.raises(ValueError, match="more than 65536 nodes"):
        expand("a" + "[0-999]" * 9)


@pytest.mark.parametrize("name", ["", "a,b", "a[1]", "a b", "(null)"])
def test_what_is_no_name_cannot_be_folded(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a node"):
        fold([name])


@given(st.text("ab019[],- ", max_size=20))
def test_any_text_is_a_list_or_an_error(text: str) -> None:
    try:
        names = expand(text)
    except ValueError:
        return
    assert names == expand(fold(names))
