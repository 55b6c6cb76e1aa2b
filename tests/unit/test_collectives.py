"""How long messages take: what was measured comes out again, and between it nothing odd."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.plan.collectives import Links, all_reduce_s, hop_s

KIB, MIB = 2**10, 2**20
H100 = Links(gpu_bytes_s=450e9, nvlink=True, node_bytes_s=400e9, per_node=8)
A100 = Links(gpu_bytes_s=300e9, nvlink=True, node_bytes_s=100e9, per_node=4)
CARDS = Links(gpu_bytes_s=31.5e9, nvlink=False, node_bytes_s=25e9, per_node=4)
GH200 = Links(gpu_bytes_s=450e9, nvlink=True, node_bytes_s=100e9, per_node=4)


@pytest.mark.parametrize(
    ("links", "ranks", "payload", "microseconds"),
    [
        (H100, 2, KIB, 2.8),
        (H100, 8, MIB, 35.5),
        (H100, 4, 256 * MIB, 2305),
        (A100, 4, 64 * KIB, 17.8),
        (A100, 2, 16 * MIB, 224),
        (GH200, 8, MIB, 164),
        (GH200, 8, 128 * MIB, 1916),
    ],
)
def test_a_measured_all_reduce_is_given_back(
    links: Links, ranks: int, payload: int, microseconds: float
) -> None:
    assert all_reduce_s(links, ranks, payload) == pytest.approx(microseconds * 1e-6)


def test_between_two_measured_sizes_the_time_is_on_the_line_of_their_logarithms() -> None:
    between = all_reduce_s(H100, 8, 4 * MIB)
    assert between == pytest.approx((35.5e-6 * 197e-6) ** 0.5)


def test_beyond_the_table_the_time_grows_with_the_message() -> None:
    largest = all_reduce_s(H100, 8, 256 * MIB)
    assert all_reduce_s(H100, 8, 1024 * MIB) == pytest.approx(4 * largest, rel=0.01)


def test_one_rank_has_nobody_to_send_to() -> None:
    assert all_reduce_s(replace(H100, node_bytes_s=None), 1, MIB) == 0.0


def test_twice_the_rate_halves_a_large_message_but_not_a_small_one() -> None:
    fast = replace(H100, gpu_bytes_s=900e9)
    assert all_reduce_s(fast, 8, 256 * MIB) == pytest.approx(
        all_reduce_s(H100, 8, 256 * MIB) / 2, rel=0.01
    )
    assert all_reduce_s(fast, 8, KIB) == all_reduce_s(H100, 8, KIB)


LINKS = st.sampled_from([H100, A100, CARDS, GH200])
RANKS = st.sampled_from([2, 3, 4, 6, 8, 16, 32])


@given(LINKS, RANKS, st.floats(1, 2e9), st.floats(1, 16))
def test_a_larger_message_never_takes_less(
    links: Links, ranks: int, payload: float, times: float
) -> None:
    assert all_reduce_s(links, ranks, payload * times) >= all_reduce_s(links, ranks, payload)


@given(LINKS, RANKS, st.floats(1, 2e9))
def test_over_nodes_is_never_faster_than_inside_one(
    links: Links, ranks: int, payload: float
) -> None:
    inside, spread = replace(links, per_node=ranks), replace(links, per_node=ranks // 2)
    assert all_reduce_s(spread, ranks, payload) >= all_reduce_s(inside, ranks, payload)


def test_small_messages_as_of_decoding_take_several_times_as_long_over_nodes() -> None:
    inside, spread = replace(GH200, per_node=8), GH200
    assert all_reduce_s(spread, 8, MIB) > 4 * all_reduce_s(inside, 8, MIB)


def test_ranks_of_a_stage_share_the_ports_of_their_node() -> None:
    one = hop_s(GH200, tp=1, ranks=8, payload=16 * MIB)
    four = hop_s(GH200, tp=4, ranks=8, payload=16 * MIB)
    assert four - one == pytest.approx(3 * 16 * MIB / 80e9)


def test_stages_on_one_node_need_no_network() -> None:
    alone = replace(GH200, node_bytes_s=None, per_node=8)
    assert hop_s(alone, tp=4, ranks=8, payload=0) == pytest.approx(10e-6)


def test_an_unknown_network_is_not_guessed() -> None:
    unknown = replace(GH200, node_bytes_s=None)
    with pytest.raises(ValueError, match="not known"):
        all_reduce_s(unknown, 8, MIB)
    with pytest.raises(ValueError, match="not known"):
        hop_s(unknown, tp=4, ranks=8, payload=MIB)
