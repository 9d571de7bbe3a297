"""Ranks of torch that are killed: every other one raises within its deadline, and what is there is whole.

The ranks of a world die one after the other, since a launch of processes takes seconds. Those that are left go on as a
smaller job, whose ranks meet in the store.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from s3dlio import CheckpointStore
from tests.frameworks.dcp_ranks import run
from tests.frameworks.dcp_states import SMALL

pytestmark = pytest.mark.slow

HELP = """
    import ctypes
    from s3dlio import CheckpointStore, DeadlineError, S3dlioError, StorageError
    from s3dlio import commit as committing, group_saver
    from s3dlio.coordination import council
    from s3dlio.coordination.boards import StoreCoordinator
    from s3dlio.engine.capture import CapturedJob
    from s3dlio.writer import ShardWriter

    council.GRACE = 1.0
    WAIT = 4.0
    store = CheckpointStore(URI, rank_timeout=WAIT, **OPTIONS)

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def then_die(plain):
        def method(*args, **options):
            plain(*args, **options)
            die()
        return method

    def state(rank):
        torch.manual_seed(7)
        return {"w": torch.randn(700_000), "bias": torch.randn(100), "own": torch.full((5,), float(rank)), "rank": rank}

    def fails(step, kind, *told, **options):
        try:
            store.save(step, state(RANK), **options)
        except kind as error:
            for text in told:
                assert text in str(error), error
            print(f"step {step}: {type(error).__name__}: {error}", flush=True)
        else:
            raise AssertionError(f"step {step} was saved")
        assert [info.step for info in store.list()] == [0], store.list()

    def zero_is_there():
        found = store.load(0, rank=RANK, coordinator=None)
        assert found["rank"] == RANK and torch.equal(found["w"], state(0)["w"])

    def leave():
        try:
            store.close()
        except S3dlioError as error:
            print("closing:", error)
        print("done", flush=True)
        os._exit(0)  # the process group is broken

    store.save(0, state(RANK))
"""


def meeting() -> str:
    """Rank 0 serves the others, as under most launchers: its death is noticed at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def test_before_staging_while_storing_and_before_the_commit(tmp_path: Path) -> None:
    body = """
    if RANK == 3:
        group_saver.GroupSave.stage = die
    fails(1, DeadlineError, "nothing was heard from rank 3 of 4 ranks within 4 s", "coordinator=None")

    if RANK == 2:
        CapturedJob.hand_over = then_die(CapturedJob.hand_over)
    left = StoreCoordinator("three are left", RANK, 3)
    fails(2, DeadlineError, "stored: nothing was heard from rank 2 of 3 ranks within 4 s", coordinator=left)

    if RANK == 1:
        ShardWriter.finish = die  # of its data all is stored
    left = StoreCoordinator("two are left", RANK, 2)
    fails(3, DeadlineError, "stored: nothing was heard from rank 1 of 2 ranks within 4 s", coordinator=left)
    zero_is_there()
    store.save(4, state(RANK), coordinator=None)
    assert [info.step for info in store.list()] == [0, 4]
    leave()
    """
    outcomes = run(tmp_path, 4, HELP + body, uri=f"file://{tmp_path}/run", killed=[1, 2, 3], meet=meeting())
    for rank, steps in enumerate([3, 2, 1, 0]):
        told = [line for line in outcomes[rank].output.splitlines() if line.startswith("step ")]
        assert len(told) == steps, outcomes[rank]
    with CheckpointStore(f"file://{tmp_path}/run", **SMALL) as store:
        assert [info.step for info in store.list()] == [0, 4]
        assert store.load(rank=0)["rank"] == 0
        assert store.verify(0).shards == 4


def test_rank_0_between_manifest_and_pointer_and_before_the_commit(tmp_path: Path) -> None:
    body = """
    if RANK == 0:
        committing.advance = die
    info = store.save(1, state(RANK))
    assert (info.step, info.world_size) == (1, 3)
    assert store.latest() == info
    assert store.load(rank=RANK, coordinator=None)["rank"] == RANK
    print("found it", flush=True)

    try:
        store.save(2, state(RANK))
    except StorageError as error:
        assert "the store of torch.distributed is gone" in str(error), error
    else:
        raise AssertionError("saved without rank 0")

    if RANK == 1:
        group_saver.commit = die
    try:
        store.save(3, state(RANK), coordinator=StoreCoordinator("two are left", RANK - 1, 2))
    except DeadlineError as error:
        assert "rank 0 has announced nothing within" in str(error), error
        print("not committed", flush=True)
    assert store.latest() == info
    store.save(4, state(RANK), coordinator=None)
    leave()
    """
    outcomes = run(tmp_path, 3, HELP + body, uri=f"file://{tmp_path}/run", killed=[0, 1], meet=meeting())
    assert [outcome.output.count("found it") for outcome in outcomes] == [0, 1, 1]
    assert "not committed" in outcomes[2].output
    with CheckpointStore(f"file://{tmp_path}/run", **SMALL) as store:
        assert [info.step for info in store.list()] == [0, 1, 4]
        assert store.load(1, rank=2)["rank"] == 2
