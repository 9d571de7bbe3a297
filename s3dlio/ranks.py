"""What this process can tell of the other ranks of its job.

Reads the launcher's environment and torch.distributed, if it is loaded; talks to nobody. ``store`` asks.
"""

from __future__ import annotations

import os
import sys

from .engine.errors import ConfigError

COORDINATORS = ("auto", None)


def check_coordinator(coordinator: str | None) -> None:
    """Until ranks agree on one checkpoint through this store, a rank among several must say that it saves alone."""
    if coordinator not in COORDINATORS:
        raise ConfigError(f"coordinator must be 'auto' or None, not {coordinator!r}")
    distributed = sys.modules.get("torch.distributed")
    ranks = 1
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        ranks = distributed.get_world_size()
    if coordinator == "auto" and ranks > 1:
        raise ConfigError(
            f"torch.distributed runs {ranks} ranks: pass coordinator=None to save this rank's state as a checkpoint "
            "of its own, or use PyCheckpointStore(...).writer(world_size, rank) and finalize on one rank"
        )


def ranks_on_host() -> int:
    """Ranks that share this machine's memory, as launchers tell (torchrun, and MPI's of Open MPI and MVAPICH)."""
    for name in ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"):
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > 0:
            return int(value)
    return 1
