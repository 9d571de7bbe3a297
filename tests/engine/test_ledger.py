"""The table of a save, driven by random worlds in which every byte and every slot is checked after every event."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3dlio.engine.actions import Action, Finish, Free, Run
from s3dlio.engine.auto import Auto
from s3dlio.engine.contract import Limits, ObjectInfo, PartReceipt
from s3dlio.engine.errors import CancelledError, CorruptError, MemoryLimitError, StorageError
from s3dlio.engine.ledger import Phase, SaveLedger, SaveSpec
from s3dlio.engine.messages import Abort, Begin, Complete, Encode, Encoded, PutWhole, Stored, StorePart
from s3dlio.engine.plan import SavePlan, plan_save
from tests.engine.fakes import KEY, LOCATION, Chances, SaveWorld

ALIGNMENT = 4


@dataclass(frozen=True)
class Case:
    plan: SavePlan
    slot_size: int
    slots: int
    raw: bytes
    codec: str
    headroom: int


@st.composite
def cases(draw: st.DrawFn, *, spare: bool = True) -> Case:
    """A save of a few hundred bytes through slots of a few dozen; as few slots as the plan allows, or some more."""
    slot_size = draw(st.sampled_from([16, 32, 64]))
    codec = draw(st.sampled_from(["none", "zstd", "zstd-grouped", "auto"]))
    headroom = ALIGNMENT if codec == "zstd" else 0
    alignment = draw(st.sampled_from([1, ALIGNMENT]))
    limits = Limits(
        part_min=draw(st.integers(1, 3 * slot_size)),
        part_max=draw(st.integers(slot_size * 4, slot_size * 8)),
        parts_max=draw(st.sampled_from([8, 40, 1000])),
        put_max=draw(st.integers(0, 20 * slot_size)),
        alignment=alignment,
    )
    size = draw(st.integers(0, min(24 * slot_size, limits.parts_max * slot_size * 3)))
    total = draw(st.sampled_from([None, size])) if limits.parts_max == 1000 else size
    whole_below = draw(st.sampled_from([0, 1 << 20]))
    lanes = draw(st.integers(1, 4))
    far = draw(st.booleans())

    def planned(slots: int) -> SavePlan:
        return plan_save(
            total,
            slot_size=slot_size,
            slots=slots,
            limits=limits,
            encoded=codec != "none",
            headroom=headroom,
            lanes=lanes,
            whole_below=whole_below,
            far=far,
        )

    slots = draw(st.integers(1, 30))
    while True:
        try:
            plan = planned(slots)
        except MemoryLimitError:
            slots += 1
            continue
        break
    if not spare:
        slots = max(1, plan.needed)  # what others hold is beyond that
    raw = random.Random(size).randbytes(size)
    return Case(plan, slot_size, slots, raw, codec, headroom)


def world(case: Case, seed: int, copiers: int = 1, chances: Chances | None = None) -> SaveWorld:
    return SaveWorld(
        case.plan,
        case.raw,
        slot_size=case.slot_size,
        slots=case.slots,
        seed=seed,
        codec=case.codec,
        headroom=case.headroom,
        copiers=copiers,
        chances=chances,
    )


SEEDS = st.integers(0, 1 << 32)


@settings(max_examples=400)
@given(cases(), SEEDS, st.integers(1, 4))
def test_every_byte_is_stored_whatever_the_order(case: Case, seed: int, copiers: int) -> None:
    w = world(case, seed, copiers, Chances(lose=0.1))
    finish = w.run()
    w.check_end(case.slots)
    assert finish.result is not None
    if not case.plan.whole:
        _check_parts(case.plan, w.store.receipts)


@settings(max_examples=400)
@given(cases(spare=False), SEEDS, st.integers(1, 4))
def test_the_planned_slots_are_enough(case: Case, seed: int, copiers: int) -> None:
    w = world(case, seed, copiers)
    w.run()
    w.check_end(case.slots)


@settings(max_examples=400)
@given(cases(), SEEDS, st.integers(1, 4), st.sampled_from([(0.1, 0.0), (0.0, 0.1), (0.05, 0.05)]))
def test_a_failed_or_cancelled_save_gives_everything_back(
    case: Case, seed: int, copiers: int, chances: tuple[float, float]
) -> None:
    w = world(case, seed, copiers, Chances(fail=chances[0], cancel=chances[1], lose=0.1))
    finish = w.run()
    w.check_end(case.slots)
    if finish.result is None and w.store.begun and not w.failed:
        assert w.store.aborted or w.store.stored is not None


def _check_parts(plan: SavePlan, receipts: tuple[PartReceipt, ...]) -> None:
    limits = plan.limits
    assert len(receipts) <= limits.parts_max
    for receipt in receipts[:-1]:
        assert plan.target(receipt.number, 0) <= receipt.size <= limits.part_max
        assert receipt.size >= limits.part_min
        assert receipt.size % limits.alignment == 0
    assert receipts[-1].size <= limits.part_max


# single events


def ledger(
    *, total: int | None = 64, slots: int = 32, codec: str = "none", whole_below: int = 0, part_min: int = 1
) -> tuple[SaveLedger, SavePlan]:
    plan = plan_save(
        total,
        slot_size=16,
        slots=slots,
        limits=Limits(part_min, 1 << 20, 1000, 1 << 20),
        encoded=codec != "none",
        headroom=0,
        lanes=1,
        whole_below=whole_below,
    )
    reserve = tuple(range(100, 100 + plan.reserve))
    return SaveLedger(SaveSpec(LOCATION, KEY, plan, 16, codec), reserve), plan


def stored(number: int, size: int = 16) -> Stored:
    return Stored(PartReceipt(number, 16 * (number - 1), size), (number,), 0.0)


def answer(task: StorePart) -> Stored:
    receipt = PartReceipt(task.number, task.offset, sum(span.length for span in task.spans))
    return Stored(receipt, tuple(0 for _ in task.spans), 0.0)


def lasting(task: object, seconds: float) -> Stored:
    """A part that took so long."""
    assert isinstance(task, StorePart)
    return replace(answer(task), seconds=seconds)


def runs(actions: object) -> list[Run]:
    assert isinstance(actions, list)
    return [action for action in actions if isinstance(action, Run)]


def test_parts_wait_for_the_upload_and_the_end_for_all_of_them() -> None:
    table, _ = ledger(total=32)
    (begin,) = table.begin()
    assert isinstance(begin, Run)
    assert isinstance(begin.task, Begin)
    assert begin.task.size == 32
    assert table.chunk_ready(0, 0, 16) == []
    first, second = runs(table.done(begin.token, "u") + table.chunk_ready(1, 1, 16))
    assert [type(run.task) for run in (first, second)] == [StorePart, StorePart]
    assert table.close(2) == []
    assert table.done(second.token, stored(2)) == [Free(1)]
    assert table.bytes_stored == 16
    freed, publish = table.done(first.token, stored(1))
    assert freed == Free(0)
    assert isinstance(publish, Run)
    assert isinstance(publish.task, Complete)
    assert [receipt.number for receipt in publish.task.parts] == [1, 2]
    (finish,) = table.done(publish.token, ObjectInfo(KEY, 32, "e", 1.0))
    assert isinstance(finish, Finish)
    assert finish.result is not None
    assert [chunk.crc for chunk in finish.result.chunks] == [1, 2]
    assert table.phase is Phase.STORED
    table.validate()


def test_an_encoded_upload_does_not_promise_a_size() -> None:
    table, _ = ledger(codec="zstd")
    (begin,) = runs(table.begin())
    assert isinstance(begin.task, Begin)
    assert begin.task.size is None


def test_an_empty_object_is_one_request() -> None:
    table, plan = ledger(total=0)
    assert plan.whole
    assert table.begin() == []
    (run,) = runs(table.close(0))
    assert isinstance(run.task, PutWhole)
    assert run.task.spans == ()
    (finish,) = table.done(run.token, Stored(PartReceipt(1, 0, 0, "e"), (), 0.0))
    assert isinstance(finish, Finish)
    assert finish.result is not None
    assert (finish.result.raw_size, finish.result.crc, finish.result.info.etag) == (0, 0, "e")


def test_an_empty_stream_is_one_empty_part() -> None:
    table, _ = ledger(total=None)
    (begin,) = runs(table.begin())
    table.done(begin.token, "u")
    (run,) = runs(table.close(0))
    assert isinstance(run.task, StorePart)
    assert run.task.spans == ()


def test_what_does_not_shrink_is_stored_from_the_raw_slot() -> None:
    table, _ = ledger(total=16, codec="zstd-grouped")
    (begin,) = runs(table.begin())
    table.done(begin.token, "u")
    (encode,) = runs(table.chunk_ready(0, 0, 16))
    assert isinstance(encode.task, Encode)
    table.close(1)
    (store,) = runs(table.done(encode.token, Encoded("none", 16, 7, 0.0)))
    assert isinstance(store.task, StorePart)
    assert [span.offset for span in store.task.spans] == [0]


def test_auto_decides_no_more_chunks_than_are_needed_now() -> None:
    """What it has learnt meanwhile counts for the rest: nothing is decided while enough is on its way."""
    plan = plan_save(
        160, slot_size=16, slots=64, limits=Limits(1, 16, 1000, 0), encoded=True, headroom=0, lanes=8, whole_below=0
    )
    auto = Auto(1)
    spec = SaveSpec(LOCATION, KEY, plan, 16, "zstd-grouped", width=2)
    table = SaveLedger(spec, tuple(range(100, 100 + plan.reserve)), auto)
    (begin,) = runs(table.begin())
    table.done(begin.token, "u")
    encodes = [run for index in range(10) for run in runs(table.chunk_ready(index, index, 16))]
    assert len(encodes) == auto.ahead
    stores: list[Run] = []
    while encodes:
        for run in runs(table.done(encodes.pop(0).token, Encoded("zstd-grouped", 15, 7, 1.0))):
            (encodes if isinstance(run.task, Encode) else stores).append(run)
    assert len(stores) == spec.width + auto.ahead + auto.ahead - 1
    fast = [run for store in stores for run in runs(table.done(store.token, lasting(store.task, 1e-9)))]
    decided = [run.task for run in fast if isinstance(run.task, Encode)]
    assert decided
    assert all(task.target is None for task in decided), "the storage proved fast: what was left is stored raw"


def test_the_first_error_is_the_saves_and_comes_after_the_last_task() -> None:
    table, _ = ledger(total=48)
    (begin,) = runs(table.begin())
    table.done(begin.token, "u")
    first, second, third = [run for slot in range(3) for run in runs(table.chunk_ready(slot, slot, 16))]
    error = StorageError("no")
    assert table.failed(first.token, error) == []
    assert table.failed(second.token, StorageError("again")) == []
    assert not table.alive
    assert table.chunk_ready(3, 3, 16) == [Free(3)]
    assert table.close(4) == []
    (abort,) = runs(table.done(third.token, stored(3)))
    assert isinstance(abort.task, Abort)
    assert table.cancel(CancelledError("late")) == []
    ended = table.done(abort.token, None)
    assert ended == [Free(0), Free(1), Free(2), Finish(None, error)]
    assert table.cancel(CancelledError("too late")) == []


def test_a_failed_abort_still_ends() -> None:
    table, _ = ledger()
    (begin,) = runs(table.begin())
    table.done(begin.token, "u")
    error = CancelledError("enough")
    (abort,) = runs(table.cancel(error))
    assert table.failed(abort.token, StorageError("gone")) == [Finish(None, error)]


def test_cancel_before_the_upload_is_known_aborts_it_once_it_is() -> None:
    table, _ = ledger()
    (begin,) = runs(table.begin())
    assert table.cancel(CancelledError("enough")) == []
    (abort,) = runs(table.done(begin.token, "u"))
    assert isinstance(abort.task, Abort)
    assert abort.task.upload == "u"


def test_a_task_withdrawn_while_encoding_gives_its_target_back() -> None:
    table, plan = ledger(codec="zstd")
    (begin,) = runs(table.begin())
    table.done(begin.token, "u")
    (encode,) = runs(table.chunk_ready(0, 0, 16))
    table.dropped(encode.token)
    (abort,) = runs(table.cancel(CancelledError("enough")))
    *freed, _ = table.done(abort.token, None)
    assert freed == [Free(slot) for slot in [0, *range(100, 100 + plan.reserve)]]


def test_a_store_that_holds_another_size_is_not_believed() -> None:
    table, _ = ledger(total=16, whole_below=1 << 20)
    (run,) = runs(table.chunk_ready(0, 0, 16) + table.close(1))
    actions = table.done(run.token, Stored(PartReceipt(1, 0, 15, "e"), (1,), 0.0))
    (finish,) = [action for action in actions if isinstance(action, Finish)]
    assert isinstance(finish.error, CorruptError)
    assert "15" in str(finish.error)
    table.validate()


def test_a_stream_longer_than_the_stores_parts_fails() -> None:
    table, _ = ledger(total=None)
    (begin,) = runs(table.begin())
    table.done(begin.token, "u")
    ended: list[Finish] = []
    indexes = iter(range(20_000))
    actions: list[Action] = []
    while not ended:
        if not actions:
            index = next(indexes)
            actions = table.chunk_ready(index, index, 16)
        match actions.pop(0) if actions else None:
            case Finish() as finish:
                ended.append(finish)
            case Run(token, StorePart() as task):
                actions += table.done(token, answer(task))
            case Run(token, _):
                actions += table.done(token, None)
    assert isinstance(ended[0].error, StorageError)
    assert "1000 parts" in str(ended[0].error)


def test_staging_a_chunk_twice_is_a_bug() -> None:
    table, _ = ledger()
    table.chunk_ready(0, 0, 16)
    with pytest.raises(AssertionError, match="twice"):
        table.chunk_ready(0, 1, 16)
