"""What ranks decide of a save: pure, from words to verdict."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.coordination.verdict import (
    DIGEST,
    Hello,
    Kind,
    Verdict,
    decide,
    owners,
    read_hello,
    read_verdict,
)
from s3dlio.coordination.words import encode_error, read_word
from s3dlio.engine.errors import (
    CancelledError,
    CheckpointNotFoundError,
    ConfigError,
    S3dlioError,
    StorageError,
    UnsupportedError,
)

NAMES = ["a", "b", "c", "d"]


def digests(values: Sequence[int]) -> bytes:
    """One of each leaf, which differ as the values do."""
    return b"".join(value.to_bytes(DIGEST, "big") for value in values)


def hello(values: Sequence[int] = (), parts: Mapping[int, Kind] | None = None, **changes: Any) -> Hello:
    given = {"step": 7, "world_size": 2, "structure": "alike", **changes}
    return Hello(digests=digests(values), parts=parts or {}, **given)


def rows(first: int, count: int, of: int = 4, width: int = 6) -> Kind:
    """Some rows of an array of ``of`` rows."""
    return (of, width), (((first, 0), (count, width)),)


def verdict(*hellos: Hello) -> Verdict:
    return decide(((rank, each.encode()) for rank, each in enumerate(hellos)), NAMES, "now")


kinds = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 9)).map(lambda pair: rows(pair[0], pair[1], 20)), min_size=0, max_size=3
)


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**96 - 1), max_size=5), kinds)
def test_a_hello_comes_as_it_was_said(step: int, values: list[int], parts: list[Kind]) -> None:
    said = hello([*values, *range(len(parts))], {len(values) + at: kind for at, kind in enumerate(parts)}, step=step)
    assert read_hello(said.encode()) == said


def test_digests_may_hold_any_byte() -> None:
    said = Hello(1, 2, "s", b"\n" * DIGEST + bytes(range(256))[:DIGEST])
    assert read_hello(said.encode()).digests == said.digests


def test_a_kind_of_part_is_said_once() -> None:
    said = hello([0] * 1000, dict.fromkeys(range(1000), rows(0, 2)))
    assert len(said.encode()) < 1000 * (DIGEST + 8) + 200


@given(
    st.lists(st.integers(0, 99), max_size=5, unique=True),
    st.lists(st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.lists(st.integers(0, 99))), max_size=3),
)
def test_a_verdict_comes_as_it_was_announced(differing: list[int], storing: list[tuple[list[int], list[int]]]) -> None:
    said = Verdict("now", tuple(differing), tuple((tuple(ranks), tuple(leaves)) for ranks, leaves in storing))
    assert read_verdict(said.encode()) == said


class Unknown(ConfigError):
    """An error of a framework, which the words do not know."""


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (UnsupportedError("state['x']: no"), UnsupportedError, "state['x']: no"),
        (StorageError("503", transient=True), StorageError, "503"),
        (CheckpointNotFoundError("none"), CheckpointNotFoundError, "none"),
        (CancelledError("line\nline"), CancelledError, "line\nline"),
        (Unknown("odd"), S3dlioError, "odd"),
        (OSError(5, "I/O"), S3dlioError, "OSError: [Errno 5] I/O"),
        (KeyboardInterrupt(), S3dlioError, "KeyboardInterrupt: "),
    ],
)
def test_an_error_is_raised_where_its_word_is_read(error: BaseException, kind: type[S3dlioError], text: str) -> None:
    for read in (read_word, read_hello, read_verdict):
        with pytest.raises(kind) as caught:
            read(encode_error(error))
        assert type(caught.value) is kind
        assert str(caught.value) == text


@pytest.mark.parametrize("kind", ["annotations", "__name__", "nothing", "BaseException"])
def test_an_error_of_no_known_kind_is_one_of_ours(kind: str) -> None:
    with pytest.raises(S3dlioError, match="text"):
        read_word(json.dumps({"error": kind, "text": "text"}).encode())


def test_a_word_says_whether_nothing_can_be_committed() -> None:
    assert json.loads(encode_error(ConfigError("x")))["clean"] is True
    assert json.loads(encode_error(ConfigError("x"), clean=False))["clean"] is False


class TestWhatAllHold:
    @given(st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=1, max_size=5))
    def test_differs_if_it_differs_on_any_rank(self, values: list[list[int]]) -> None:
        found = verdict(*(hello(each, world_size=len(values)) for each in values))
        assert found.timestamp == "now"
        assert found.differing == tuple(leaf for leaf in range(4) if len({each[leaf] for each in values}) > 1)
        assert found.storing == ()

    def test_each_half_of_a_digest_counts(self) -> None:
        assert verdict(hello([1]), hello([1 << 95])).differing == (0,)

    def test_may_be_nothing(self) -> None:
        assert verdict(hello(), hello()) == Verdict("now")

    @given(st.lists(st.integers(0, 1 << 40), max_size=60), st.integers(1, 9))
    def test_is_stored_once_and_by_all_alike(self, sizes: list[int], world: int) -> None:
        found = owners(sizes, world)
        assert len(found) == len(sizes)
        assert all(0 <= rank < world for rank in found)
        loads = [sum(size for size, rank in zip(sizes, found, strict=True) if rank == each) for each in range(world)]
        # The largest first, each to whom has least: nobody has more than the mean and the largest.
        assert max(loads, default=0) <= sum(sizes) / world + max(sizes, default=0)

    def test_of_one_size_is_dealt_out(self) -> None:
        assert owners([5] * 7, 3) == [0, 1, 2, 0, 1, 2, 0]
        assert owners([1, 100, 1, 1], 2) == [1, 0, 1, 1]


class TestParts:
    def test_of_one_rank_each_are_stored_by_it(self) -> None:
        found = verdict(hello([1, 2], {1: rows(0, 2)}), hello([1, 3], {1: rows(2, 2)}))
        assert found == Verdict("now")
        assert [list(found.elsewhere(rank)) for rank in range(2)] == [[], []]

    def test_with_replicas_are_stored_once_and_spread(self) -> None:
        """Rows in two halves, each of which two ranks have: of four arrays each rank stores two parts."""
        ranks = [hello([5 + rank % 2] * 4, dict.fromkeys(range(4), rows(rank % 2 * 2, 2))) for rank in range(4)]
        found = verdict(*ranks)
        stored = {rank: set(range(4)) - set(found.elsewhere(rank)) for rank in range(4)}
        assert stored == {0: {0, 2}, 1: {0, 2}, 2: {1, 3}, 3: {1, 3}}

    @given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6))
    def test_are_each_stored_by_one_rank(self, shards: int, copies: int, leaves: int) -> None:
        kind = [rows(shard, 1, shards) for shard in range(shards)]
        ranks = [
            hello([rank % shards] * leaves, dict.fromkeys(range(leaves), kind[rank % shards]))
            for rank in range(shards * copies)
        ]
        found = verdict(*ranks)
        for leaf in range(leaves):
            there = [rank for rank in range(shards * copies) if leaf not in set(found.elsewhere(rank))]
            assert sorted(rank % shards for rank in there) == list(range(shards))

    def test_with_replicas_are_spread_by_their_size(self) -> None:
        """A weight, its bias, a weight, its bias: by turns one replica would store all of the weights."""
        parts = {leaf: rows(0, 2, 2, width) for leaf, width in enumerate([100, 1, 100, 1, 100, 1, 100, 1])}
        found = verdict(hello([7] * 8, parts), hello([7] * 8, parts))
        stored = [[parts[leaf][0][1] for leaf in set(range(8)) - set(found.elsewhere(rank))] for rank in range(2)]
        assert abs(sum(stored[0]) - sum(stored[1])) <= 4

    def test_without_elements_are_nobodys(self) -> None:
        nothing: Kind = ((2, 6), (((2, 0), (0, 6)),))
        absent: Kind = ((2, 6), ())
        found = verdict(
            hello([1], {0: rows(0, 1, 2)}), hello([2], {0: rows(1, 1, 2)}), hello([0], {0: nothing}),
            hello([0], {0: absent}),
        )  # fmt: skip
        assert found.differing == ()
        with_replicas = verdict(
            hello([1], {0: rows(0, 2, 2)}), hello([1], {0: rows(0, 2, 2)}), hello([0], {0: nothing}),
            hello([0], {0: absent}),
        )  # fmt: skip
        assert [list(with_replicas.elsewhere(rank)) for rank in range(4)] == [[], [0], [0], [0]]

    def test_of_an_empty_array_are_nothing(self) -> None:
        empty: Kind = ((0, 6), (((0, 0), (0, 6)),))
        assert verdict(hello([0], {0: empty}), hello([0], {0: empty})) == Verdict("now")

    def test_that_leave_elements_out_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="parts of b on all ranks hold 18 elements, the array 24: its mesh does"):
            verdict(hello([1, 2], {1: rows(0, 2)}), hello([1, 3], {1: rows(2, 1)}))

    def test_that_overlap_are_refused(self) -> None:
        """Half of the rows here, half of the columns there: as many elements as the array has, a quarter twice."""
        columns: Kind = ((4, 6), (((0, 3), (4, 3)),))
        with pytest.raises(ConfigError, match="parts of b on all ranks overlap and leave others out: every rank must"):
            verdict(hello([1, 2], {1: rows(0, 2)}), hello([1, 3], {1: columns}))

    def test_that_are_the_same_with_other_values_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="ranks 1 and 2 have the same part of c with other values: give arrays"):
            verdict(
                hello([1, 2, 1], {2: rows(0, 2)}), hello([1, 2, 2], {2: rows(2, 2)}), hello([1, 2, 3], {2: rows(2, 2)})
            )  # fmt: skip

    def test_may_be_several_of_one_rank(self) -> None:
        corners: Kind = ((4, 4), (((0, 0), (2, 2)), ((2, 2), (2, 2))))
        others: Kind = ((4, 4), (((0, 2), (2, 2)), ((2, 0), (2, 2))))
        assert verdict(hello([1], {0: corners}), hello([2], {0: others})) == Verdict("now")
        with pytest.raises(ConfigError, match="overlap"):
            verdict(hello([1], {0: corners}), hello([2], {0: (others[0], (others[1][0], others[1][0]))}))


class TestDisagreement:
    def test_on_the_step_is_told_with_the_ranks(self) -> None:
        with pytest.raises(ConfigError, match="ranks disagree on the step: rank 0 says 7, ranks 1, 3 8"):
            verdict(hello(), hello(step=8), hello(), hello(step=8))

    def test_on_the_world_size(self) -> None:
        with pytest.raises(ConfigError, match="ranks disagree on the world size: rank 0 says 2, rank 1 3"):
            verdict(hello(), hello(world_size=3))

    def test_on_the_tree(self) -> None:
        with pytest.raises(ConfigError, match="the state of rank 2 has other arrays than that of rank 0") as caught:
            verdict(hello([1]), hello([1]), hello([1, 2], structure="other"))
        assert "coordinator=None" in str(caught.value)

    def test_on_what_a_state_is(self) -> None:
        with pytest.raises(ConfigError, match="the state of rank 1 has other arrays"):
            verdict(hello([1]), hello(structure="payload"))

    def test_a_rank_that_failed_is_named_with_its_error(self) -> None:
        words = [hello([1]).encode(), encode_error(UnsupportedError("state['x']: a lambda"))]
        with pytest.raises(UnsupportedError, match=r"rank 1 failed, so no rank saves: state\['x'\]: a lambda"):
            decide(enumerate(words), NAMES, "now")


def test_no_more_than_one_hello_is_held() -> None:
    """Of thousands of ranks all hellos together may be more than the memory has."""
    size = 1 << 20

    def words() -> Iterator[tuple[int, bytes]]:
        for rank in range(30):
            part = {0: rows(rank, 1, 30)}
            yield rank, Hello(7, 30, "alike", bytes([rank]) * (size // DIGEST * DIGEST), part).encode()

    tracemalloc.start()
    try:
        found = decide(words(), ["a"] * (size // DIGEST), "now")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found.differing) == size // DIGEST - 1
    assert peak < 12 * size


@given(st.data())
def test_any_layout_of_parts_is_whole_or_refused(data: st.DataObject) -> None:
    """Against counting element by element."""
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    boxes = []
    for _ in range(data.draw(st.integers(1, 4))):
        at = tuple(data.draw(st.integers(0, side - 1)) for side in shape)
        boxes.append((at, tuple(data.draw(st.integers(1, side - low)) for side, low in zip(shape, at, strict=True))))
    covered = np.zeros(shape, int)
    for offsets, sizes in set(boxes):  # the same box on two ranks is a replica
        covered[tuple(slice(low, low + size) for low, size in zip(offsets, sizes, strict=True))] += 1
    ranks = [hello([7], {0: (shape, (box,))}) for box in boxes]
    if (covered == 1).all():
        found = verdict(*ranks)
        there = [boxes[rank] for rank in range(len(boxes)) if 0 not in set(found.elsewhere(rank))]
        assert sum(math.prod(sizes) for _, sizes in there) == math.prod(shape)
    else:
        with pytest.raises(ConfigError, match=r"hold|overlap"):
            verdict(*ranks)
