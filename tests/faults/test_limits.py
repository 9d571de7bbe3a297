"""Too little of something: memory, descriptors, /dev/shm, a control group's share. It is said, or made do with."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from s3dlio import CheckpointStore
from s3dlio.engine.errors import MemoryLimitError
from tests.faults import groups, places, states
from tests.faults.conftest import Open, Scripting
from tests.faults.folders import contents, hidden
from tests.faults.states import MIB

SAVES: list[Callable[[CheckpointStore], object]] = [
    lambda store: store.save(2, states.make(2)),
    lambda store: store.save_async(2, states.make(2)),
    lambda store: store.save_async(2, states.make(2), defer_staging=True),
    lambda store: store.load(),
    lambda store: store.warmup(),
]


@pytest.mark.parametrize("ask", SAVES)
def test_memory_smaller_than_a_chunk(open_store: Open, folder: Path, ask: Callable[[CheckpointStore], object]) -> None:
    """Refused before anything is started or written."""
    with open_store(workers=1) as store:
        store.save(1, states.make(1))
    before = contents(folder)
    store = open_store(memory=MIB - 1)
    with pytest.raises(MemoryLimitError, match=r"raise memory=.*or lower chunk_size="):
        ask(store)
    store.close()
    assert contents(folder) == before


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("compression", [None, "zstd-grouped"])
def test_memory_of_a_few_chunks(open_store: Open, folder: Path, compression: str | None, slots: int) -> None:
    """A state larger than the arena streams through it; where the codec needs more chunks at once, that is said."""
    state = states.make(1, 8)
    with open_store(memory=slots * MIB, compression=compression) as store:
        if compression is not None:
            with pytest.raises(MemoryLimitError, match=f"needs . chunks .* the memory number allows {slots}: raise"):
                store.save(1, state)
            assert not folder.exists()
            return
        store.save(1, state)
        assert states.same(store.load(), state)
        target = states.zeroed(state)
        assert states.same(store.load(into=target), state)
        assert list(store.load(names="*half")) == ["model.half"]


FEW_FILES = """
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (ARGS["files"], ARGS["files"]))
    from s3dlio.engine.errors import S3dlioError
    try:
        with open_store() as store:
            handles = [store.save_async(step, states.make(step)) for step in range(6)]
            for handle in handles:
                handle.result()
            loaded = [store.load(step) for step in range(6)]
            assert all(states.same(state, states.make(step)) for step, state in enumerate(loaded))
            assert len(os.listdir("/proc/self/fd")) < ARGS["files"]
        say("well")
    except S3dlioError as error:
        say(type(error).__name__, error)
"""


@pytest.mark.slow
def test_64_open_files(script: Scripting) -> None:
    trainer = script(FEW_FILES, files=64)
    assert trainer.line() == "well"
    assert trainer.end() == 0, trainer.errors
    assert trainer.errors == ""


@pytest.mark.slow
@pytest.mark.parametrize("files", range(4, 24, 3))
def test_too_few_open_files(script: Scripting, files: int) -> None:
    """An error of ours that names the limit, or success; never a hang and never a traceback."""
    trainer = script(FEW_FILES, files=files)
    line = trainer.line()
    assert line == "well" or "open files" in line, line
    assert trainer.end() == 0, trainer.errors
    assert "Traceback" not in trainer.errors


SMALL_SHM = """
    before = os.listdir("/dev/shm")
    with open_store(memory=96 * states.MIB) as store:
        store.warmup()
        state = states.make(1, 80)
        store.save(1, state)
        assert states.same(store.load(), state)
        assert os.listdir("/dev/shm") == before
    space = os.statvfs("/dev/shm")
    say(space.f_blocks * space.f_frsize >> 20)
"""


@pytest.mark.slow
def test_64_mib_of_dev_shm(script: Scripting) -> None:
    """As in a container: nothing of ours lies there, so an arena and a state of more fit."""
    trainer = script(SMALL_SHM, prefix=places.mounted("tmpfs", Path("/dev/shm"), "size=64m"))
    assert trainer.line() == "64"
    assert trainer.end() == 0, trainer.errors


def test_nothing_in_dev_shm(open_store: Open) -> None:
    """The same, told without the right to mount."""
    before = sorted(Path("/dev/shm").iterdir())
    with open_store() as store:
        store.save(1, states.make(1))
        store.load()
        assert sorted(Path("/dev/shm").iterdir()) == before


GROUP = """
    state = states.make(1, 64)
    store = open_store(memory=4096 * states.MIB, chunk_size=8 * states.MIB)
    say("warm", store.warmup() >> 20)
    handles = [store.save_async(step, state, defer_staging=True) for step in range(4)]
    for handle in handles:
        handle.result()
    say("saved")
    loaded = store.load()
    say("loaded")
    assert states.same(loaded, state)
    store.close()
    say("well")
"""


@pytest.mark.slow
def test_a_control_group_lower_than_the_arena(script: Scripting) -> None:
    """The arena grows only as far as the group has room: taking more would be a SIGKILL, not an errno.

    For a load, which needs more than is left then, it gives its free slots back.
    """
    limit = 420 * MIB
    with groups.memory_group(limit) as (prefix, group):
        trainer = script(GROUP, prefix=prefix)
        word, warm = trainer.line().split()
        assert word == "warm"
        assert 0 < int(warm) * MIB < limit
        assert [trainer.line() for _ in range(3)] == ["saved", "loaded", "well"]
        assert trainer.end() == 0, trainer.errors
        assert groups.kills(group) == 0
        trainer.all_gone()


def test_the_limit_of_file_sizes_binds_the_arena(open_store: Open, folder: Path) -> None:
    """It is a file without a name; a soft limit of this process is enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB - 1, hard))
    try:
        with open_store() as store, pytest.raises(MemoryLimitError, match="file-size limit"):
            store.save(1, states.make(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert hidden(folder.parent) == []
