"""Helpers of the tests that run real stores: a small configuration, stopped workers, and what lies in a folder."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from s3dlio import CheckpointStore
from s3dlio.catalog import find
from s3dlio.index import ShardIndex
from s3dlio.reader import ShardReader

MIB = 1 << 20
SMALL: dict[str, Any] = {"memory": 64 * MIB, "workers": 2, "chunk_size": MIB}
"""One pool for all tests of a module: chunks of 1 MiB make small states have several."""


def open_store(folder: Path, scheme: str = "file", **options: Any) -> CheckpointStore:
    """A store in ``folder`` that shares the small pool, unless ``options`` say otherwise."""
    return CheckpointStore(f"{scheme}://{folder}", **{**SMALL, **options})


@contextmanager
def keeping_pool(folder: Path) -> Iterator[CheckpointStore]:
    """A store whose pool lives on: the stores that tests open find it running, and leave it running."""
    with open_store(folder) as store:
        store.save(0, b"")  # its threads exist before the first test's leak check looks
        yield store


@contextmanager
def workers_stopped(store: CheckpointStore) -> Iterator[None]:
    """While within, nothing is stored or answered: the workers are stopped by the kernel.

    The store has saved before, so that ``save_async`` needs no answer of them.
    """
    pids = worker_pids(store)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def worker_pids(store: CheckpointStore) -> list[int]:
    return store._use_pool().supervisor.pids()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def index_of(store: CheckpointStore, step: int) -> ShardIndex:
    """The index of the only shard of a step."""
    (record,) = find(store.control(), step).shards
    index = ShardReader(store._use_pool(), store.location).index(record)
    assert index is not None
    return index


def random_bytes(size: int, seed: int = 1) -> bytes:
    """Bytes that do not shrink."""
    return np.random.default_rng(seed).bytes(size)


def smooth_floats(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Numbers whose exponents repeat: they shrink."""
    return np.linspace(1, 2, count, dtype=np.float32)


def assert_same(found: Any, expected: Any) -> None:
    """Equal in structure, types, dtypes, shapes and bits."""
    assert type(found) is type(expected), (type(found), type(expected))
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, np.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
    elif isinstance(expected, float):
        assert found.hex() == expected.hex()
    else:
        assert found == expected


def in_forked_child(function: Callable[[], object]) -> None:
    """Run ``function`` in a forked child, which ends without Python's shutdown; fails with what it raised."""
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads
        child = os.fork()
    if not child:
        try:
            function()
        except BaseException:  # noqa: BLE001 - told by the parent
            os.write(theirs, traceback.format_exc().encode()[-60_000:])
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        told = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    assert (status, told) == (0, ""), told
