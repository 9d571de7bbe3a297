"""What this process can tell of the other ranks on its machine, from the launcher's environment. ``pools`` asks."""

from __future__ import annotations

import os


def ranks_on_host() -> int:
    """Ranks that share this machine's memory, as launchers tell (torchrun, and MPI's of Open MPI and MVAPICH)."""
    for name in ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"):
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > 0:
            return int(value)
    return 1
