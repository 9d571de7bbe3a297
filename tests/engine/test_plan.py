"""The rules of size: whatever the limits and lengths, parts cover the bytes in order, within what the store takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from s3dlio.engine.contract import Limits
from s3dlio.engine.errors import ConfigError, MemoryLimitError
from s3dlio.engine.plan import MIB, Gatherer, Part, Piece, SavePlan, plan_save

GIB = 1 << 30
S3 = Limits(part_min=5 * MIB, part_max=5 * GIB, parts_max=10_000, put_max=5 * GIB)
FILES = Limits(part_min=1, part_max=1 << 30, parts_max=1 << 20, put_max=64 * MIB, alignment=4096)


def planned(
    total: int | None,
    *,
    slot_size: int = 16 * MIB,
    slots: int = 64,
    limits: Limits = S3,
    encoded: bool = False,
    headroom: int = 4096,
    lanes: int = 4,
    whole_below: int = 0,
    part_size: int | None = None,
    far: bool = False,
) -> SavePlan:
    return plan_save(
        total,
        slot_size=slot_size,
        slots=slots,
        limits=limits,
        encoded=encoded,
        headroom=headroom,
        lanes=lanes,
        whole_below=whole_below,
        part_size=part_size,
        far=far,
    )


def gathered(plan: SavePlan, lengths: list[int]) -> list[Part]:
    """The parts of chunks of these stored lengths, each in a slot of its own number."""
    gatherer = Gatherer(plan)
    parts: list[Part] = []
    for slot, length in enumerate(lengths):
        for part in gatherer.add(Piece(slot, 0, length)):
            unstored = 0 if plan.total is None else plan.total - plan.chunk_range(slot)[1]
            left = sum(lengths[: slot + 1]) - part.offset + unstored
            assert part.size >= plan.target(part.number, left)
            parts.append(part)
    parts += gatherer.finish()
    assert gatherer.pending == ()
    return parts


def check(plan: SavePlan, lengths: list[int], parts: list[Part]) -> None:
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    offset = 0
    for part in parts:
        assert part.offset == offset
        offset += part.size
    assert offset == sum(lengths)
    for part in parts[:-1]:
        assert plan.limits.part_min <= part.size <= plan.limits.part_max
        assert part.size % plan.limits.alignment == 0
    assert parts[-1].size <= max(plan.limits.part_max, plan.limits.put_max if plan.whole else 0)
    covered: list[tuple[int, int, int]] = []
    for piece in (piece for part in parts for piece in part.pieces):
        if covered and covered[-1][0] == piece.slot:
            slot, start, stop = covered[-1]
            assert piece.start == stop
            covered[-1] = (slot, start, stop + piece.length)
        else:
            covered.append((piece.slot, piece.start, piece.start + piece.length))
    assert covered == [(slot, 0, length) for slot, length in enumerate(lengths) if length]


@st.composite
def limits(draw: st.DrawFn, slot_size: int, alignment: int) -> Limits:
    part_max = draw(st.integers(slot_size, 20 * slot_size))
    return Limits(
        part_min=draw(st.integers(1, part_max)),
        part_max=part_max,
        parts_max=draw(st.integers(1, 50)),
        put_max=draw(st.integers(0, part_max)),
        alignment=alignment,
    )


@settings(max_examples=250)
@given(st.data())
def test_parts_cover_the_bytes_exactly(data: st.DataObject) -> None:
    alignment = data.draw(st.sampled_from([1, 4, 8]))
    slot_size = alignment * data.draw(st.integers(2, 20))
    encoded = data.draw(st.booleans())
    store = data.draw(limits(slot_size, alignment))
    total = data.draw(st.integers(0, 60 * slot_size))
    try:
        plan = planned(
            total,
            slot_size=slot_size,
            slots=1000,
            limits=store,
            encoded=encoded,
            headroom=alignment,
            whole_below=data.draw(st.sampled_from([0, total])),
            far=data.draw(st.booleans()),
        )
    except ConfigError:
        assume(False)
    raw = [stop - start for start, stop in map(plan.chunk_range, range(plan.chunks))]
    assert sum(raw) == total
    lengths = raw
    if encoded:
        lengths = [data.draw(st.integers(1, length + alignment)) for length in raw]
    parts = gathered(plan, lengths)
    check(plan, lengths, parts)
    assert len(parts) <= store.parts_max
    assert len(parts) == 1 or not plan.whole
    if not encoded:  # the checksums of its pieces are those of whole chunks
        for part in parts:
            assert part.offset % plan.chunk_size == 0
            assert [piece.length for piece in part.pieces] == raw[
                part.offset // plan.chunk_size : part.offset // plan.chunk_size + len(part.pieces)
            ]


@given(st.integers(0, 100 * GIB), st.sampled_from([MIB, 4 * MIB, 16 * MIB, 64 * MIB]), st.booleans(), st.booleans())
def test_s3_takes_any_shard_up_to_100_gib(total: int, slot_size: int, encoded: bool, far: bool) -> None:
    plan = planned(total, slot_size=slot_size, slots=2000, encoded=encoded, whole_below=8 * MIB, far=far)
    # Nothing shrinks: the most parts there can be.
    most = total + (plan.chunks * 4096 if encoded else 0)
    parts = 1 if plan.whole else -(-most // plan.part_least)
    assert parts <= S3.parts_max
    assert plan.whole == (total <= 8 * MIB)
    if not plan.whole:
        assert S3.part_min <= plan.part_least <= plan.part_target <= S3.part_max


@given(st.integers(1, 200), st.booleans(), st.sampled_from([S3, FILES]))
def test_a_streams_parts_grow_within_what_it_may_hold(slots: int, encoded: bool, store: Limits) -> None:
    try:
        plan = planned(None, slots=slots, encoded=encoded, limits=store)
    except MemoryLimitError:
        assert slots < 20
        return
    numbers = [1, store.parts_max // 2, store.parts_max]
    targets = [plan.target(number, 0) for number in numbers]
    assert targets == sorted(targets)
    assert targets[-1] <= plan.part_most <= store.part_max
    assert plan.needed <= slots // 2
    assert plan.reserve + plan.part_most // plan.chunk_size <= plan.needed


def test_a_stream_may_be_long() -> None:
    plan = planned(None, slots=256)
    assert sum(plan.target(number, 0) for number in range(1, S3.parts_max + 1)) > 900 * GIB


@pytest.mark.parametrize("slots", [256, 100_000])
def test_a_stream_holds_no_more_than_its_parts_may_grow_to(slots: int) -> None:
    assert planned(None, slots=slots).needed == 16


@pytest.mark.parametrize(("part_size", "part"), [(1, 1), (16 * MIB, 1), (17 * MIB, 2), (64 * MIB, 4)])
def test_the_parts_of_a_stream_may_be_fixed(part_size: int, part: int) -> None:
    plan = planned(None, slots=100_000, part_size=part_size)
    assert {plan.target(number, 0) for number in (1, S3.parts_max)} == {part * 16 * MIB}
    assert plan.needed == part
    encoded = planned(None, slots=100_000, part_size=part_size, encoded=True)
    assert (
        encoded.target(S3.parts_max, 0)
        == max(part_size, S3.part_min, 1) + -max(part_size, S3.part_min, 1) % S3.alignment
    )
    with pytest.raises(MemoryLimitError):
        planned(None, slots=2 * part - 1, part_size=part_size)


def test_a_fixed_part_is_no_larger_than_the_store_takes() -> None:
    assert planned(None, slots=100_000, part_size=1 << 60).part_target == S3.part_max


def test_chunks_of_a_stream_are_whole_slots() -> None:
    assert planned(None).chunk_range(3) == (48 * MIB, 64 * MIB)


@pytest.mark.parametrize("encoded", [False, True])
def test_a_small_shard_is_one_request(encoded: bool) -> None:
    plan = planned(5 * MIB, encoded=encoded, whole_below=8 * MIB)
    assert plan.whole
    assert plan.reserve == (1 if encoded else 0)
    assert not planned(5 * MIB, encoded=encoded, whole_below=4 * MIB).whole
    assert not planned(5 * MIB, encoded=encoded, whole_below=8 * MIB, limits=replace(S3, put_max=5 * MIB - 1)).whole


def test_what_may_grow_by_its_encoding_is_measured_encoded() -> None:
    tight = replace(S3, put_max=5 * MIB)
    assert planned(5 * MIB, whole_below=8 * MIB, limits=tight).whole
    assert not planned(5 * MIB, whole_below=8 * MIB, limits=tight, encoded=True).whole


def test_a_whole_object_takes_half_of_the_arena_at_most() -> None:
    assert planned(4 * MIB, slot_size=MIB, slots=8, whole_below=8 * MIB).whole
    assert not planned(4 * MIB + 1, slot_size=MIB, slots=8, whole_below=8 * MIB, limits=FILES).whole


def test_a_part_of_many_slots_needs_them() -> None:
    assert planned(GIB, slot_size=MIB, slots=5).needed == 5
    with pytest.raises(MemoryLimitError, match=r"needs 5 chunks of 1048576 bytes .* allows 4: raise memory="):
        planned(GIB, slot_size=MIB, slots=4)
    with pytest.raises(MemoryLimitError, match="raise memory= or lower chunk_size="):
        planned(GIB, slot_size=MIB, slots=10, encoded=True)


def test_one_chunk_of_memory_is_enough_for_a_plain_save() -> None:
    assert planned(GIB, slots=1).needed == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total": 1, "slot_size": 4097, "limits": FILES}, "must be a multiple of 4096"),
        ({"total": 1, "slot_size": 4096, "encoded": True}, "above 4096 bytes"),
        ({"total": 1, "slot_size": 6 * GIB}, "above the largest part"),
        ({"total": 10_001 * 5 * GIB}, "more than the store takes in one object"),
        ({"total": 1, "slot_size": 4 * MIB, "limits": replace(S3, part_max=6 * MIB)}, "lower chunk_size="),
    ],
)
def test_what_the_store_cannot_take_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(**arguments)  # type: ignore[arg-type]


def test_small_pieces_find_room_behind_the_last_one() -> None:
    plan = planned(GIB, slot_size=MIB, encoded=True)
    gatherer = Gatherer(plan)
    assert gatherer.room(10, MIB) is None  # nothing to stand behind
    gatherer.add(Piece(7, 0, MIB - 15))
    assert gatherer.room(10, MIB) == Piece(7, MIB - 15, 10)
    assert gatherer.add(Piece(7, MIB - 15, 10)) == []
    assert gatherer.pending == (Piece(7, 0, MIB - 5),)
    assert gatherer.room(10, MIB) is None  # the slot is full
    for slot in range(3):
        gatherer.add(Piece(slot, 0, MIB))
    gatherer.add(Piece(9, 0, MIB - 10))
    assert gatherer.room(15, MIB) is None  # it completes the part: nothing to wait for
    assert gatherer.room(5, MIB) == Piece(9, MIB - 10, 5)


def test_an_empty_object_is_one_empty_part() -> None:
    assert gathered(planned(0), []) == [Part(1, 0, ())]
    assert gathered(planned(None), [0]) == [Part(1, 0, ())]


@pytest.mark.parametrize(
    ("gib", "slots", "lanes", "mib"),
    [
        (0.5, 256, 16, 16),  # too few parts to go round
        (1, 256, 16, 32),
        (2, 256, 16, 64),
        (4, 256, 16, 64),
        (100, 256, 16, 64),  # never larger, unless the store's most parts want it
        (1000, 256, 16, 112),
        (4, 64, 16, 32),  # half of the arena for 16 parts
        (4, 16, 16, 16),
        (4, 64, 2, 64),
    ],
)
def test_large_shards_go_to_a_far_store_in_larger_parts(gib: float, slots: int, lanes: int, mib: int) -> None:
    plan = planned(round(gib * GIB), slots=slots, lanes=lanes, far=True)
    assert plan.part_target == mib * MIB
    assert planned(round(gib * GIB), slots=slots, lanes=lanes).part_target == max(16, mib if mib > 64 else 0) * MIB


def test_encoded_parts_for_a_far_store_grow_at_first_and_shrink_towards_the_end() -> None:
    plan = planned(2 * GIB, slots=128, encoded=True, far=True)
    sizes = [part.size // MIB for part in gathered(plan, [13 * MIB] * plan.chunks)]
    middle = sizes.index(65)
    assert sizes[:middle] == [13] * 8 + [26] * 4 + [39] * 4
    assert sizes[middle:] == sorted(sizes[middle:], reverse=True)
    assert sizes.count(65) > 10
    assert sizes[-8:] == [13] * 8


def test_parts_of_whole_chunks_do_not_shrink() -> None:
    plan = planned(GIB, slots=128, far=True)
    assert {part.size for part in gathered(plan, [16 * MIB] * plan.chunks)} == {64 * MIB}


@given(st.integers(1, 2000), st.integers(1, 64), st.integers(1, 40), st.booleans())
@example(slots=8, lanes=1, gib=1, encoded=True)
def test_larger_parts_never_want_more_memory_than_there_is(slots: int, lanes: int, gib: int, encoded: bool) -> None:
    try:
        planned(gib * GIB, slots=slots, lanes=lanes, encoded=encoded)
    except MemoryLimitError:
        return
    plan = planned(gib * GIB, slots=slots, lanes=lanes, encoded=encoded, far=True)
    assert plan.needed <= slots
