"""Which board the ranks of this job share, and the councils on it.

Owns the finding (``auto``: torch.distributed, jax.distributed or MPI, whichever this process runs with more than one
rank) and the one board and one council for each store that a process has: every rank counts a store's topics alike only
if they are counted in one place. Making a board may be a collective: the calling thread does it.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from ..engine.contract import Control
from ..engine.errors import ConfigError
from .board import Board
from .council import Council


@dataclass(frozen=True, slots=True)
class StoreCoordinator:
    """Ranks that run without a launcher of one of the known kinds meet in the store itself.

    ``run`` names this start of the job and must be new, on every rank the same: a job's id and its attempt, say.
    """

    run: str
    rank: int
    world_size: int


Coordinator = str | StoreCoordinator | None
"""``"auto"``, ``None`` (this rank is on its own) or a ``StoreCoordinator``."""


class Seat:
    """This rank's place in the council of one store, and the numbers of its topics."""

    def __init__(self, council: Council) -> None:
        self.council = council
        self._numbers = itertools.count()

    def topic(self, kind: str) -> str:
        """A name for what the ranks are about to talk of; call it on every rank in the same order."""
        return f"{kind}-{next(self._numbers)}"


def seat_of(coordinator: Coordinator, uri: str, control: Callable[[], Control], timeout: float) -> Seat | None:
    """This rank's seat among those that share the store at ``uri``; ``None`` where it is on its own.

    ``ConfigError`` for what is no coordinator, and in a process that was forked from a rank.
    """
    if coordinator is None:
        return None
    if isinstance(coordinator, StoreCoordinator):
        run = coordinator
        seat = _seat(("store", uri, run), uri, lambda: _store_board(control(), run), timeout, prefix="ranks")
        seat.council.board = _store_board(control(), run)  # of the store that asks: an earlier one may be closed
        return seat
    if coordinator != "auto":
        raise ConfigError(f"coordinator must be 'auto', None or a StoreCoordinator, not {coordinator!r}")
    for find, make in ((_torch_key, _torch_board), (_jax_key, _jax_board), (_mpi_key, _mpi_board)):
        key = find()
        if key in _inherited:
            raise ConfigError(
                "this process was forked from a rank of the job and is none itself: pass coordinator=None to save or "
                "load on its own"
            )
        if key is not None:
            return _seat(key, uri, make, timeout)
    return None


# A key is a job's, whose object it holds weakly where it can: an id may be used again for a job started later.


def _torch_key() -> Hashable | None:
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    if distributed.get_world_size() < 2:
        return None
    return "torch", weakref.ref(distributed.distributed_c10d._get_default_store())


def _torch_board() -> Board:
    from .torch_board import TorchBoard

    return TorchBoard()


def _jax_key() -> Hashable | None:
    distributed: Any = sys.modules.get("jax._src.distributed")
    if distributed is None or distributed.global_state.client is None or distributed.global_state.num_processes < 2:
        return None
    return "jax", distributed.global_state.client


def _jax_board() -> Board:
    from .jax_board import JaxBoard

    return JaxBoard()


def _mpi_key() -> Hashable | None:
    mpi: Any = sys.modules.get("mpi4py.MPI")
    if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized() or mpi.COMM_WORLD.Get_size() < 2:
        return None
    return "mpi"


def _mpi_board() -> Board:
    from .mpi_board import MpiBoard

    return MpiBoard()


def _store_board(control: Control, run: StoreCoordinator) -> Board:
    from .store_board import StoreBoard

    return StoreBoard(control, run.run, run.rank, run.world_size)


_lock = threading.Lock()
_boards: dict[Hashable, Board] = {}
_seats: dict[tuple[Hashable, str], Seat] = {}
_inherited: set[Hashable] = set()
"""Jobs of the process that this one was forked from. A child that joins one of its own has another key."""


def _seat(key: Hashable, uri: str, make: Callable[[], Board], timeout: float, prefix: str | None = None) -> Seat:
    with _lock:
        board = _boards.get(key)
        if board is None:
            board = _boards[key] = make()
        seat = _seats.get((key, uri))
        if seat is None:
            seat = _seats[key, uri] = Seat(Council(board, uri, timeout, prefix))
        seat.council.timeout = timeout  # of the store that asks
        return seat


def _forget() -> None:
    """A forked child has no rank of its own, unless it joins a job afterwards: it would speak for its parent."""
    global _lock
    _lock = threading.Lock()
    _inherited.update(key for find in (_torch_key, _jax_key, _mpi_key) if (key := find()) is not None)
    _boards.clear()
    _seats.clear()


os.register_at_fork(after_in_child=_forget)
