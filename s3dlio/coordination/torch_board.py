"""The board of a torch.distributed job: a second connection to the store that its ranks met in.

Owns that connection. Runs no collective: on torch 2.13 one gather that timed out breaks all later ones, and two saves
at once were seen to exchange each other's records. Made in the calling thread by ``boards``.
"""

from __future__ import annotations

import datetime
from typing import Any

from ..engine.errors import StorageError

_PREFIX = "s3dlio/"
_WAIT = 5.0  # seconds of one request: others that use this connection wait for it


class TorchBoard:
    """Values in the store of the default process group; its ``clone`` may be used beside the group's own."""

    def __init__(self) -> None:
        import torch.distributed as dist
        from torch.distributed import distributed_c10d

        self.rank: int = dist.get_rank()
        self.world_size: int = dist.get_world_size()
        store: Any = distributed_c10d._get_default_store()
        self._speak, self._listen = store.clone(), store.clone()  # a wait holds its connection
        self._missing = dist.DistStoreError
        self._broken = dist.DistError

    def put(self, key: str, value: bytes) -> None:
        try:
            self._speak.set(_PREFIX + key, value)
        except self._broken as error:
            raise _lost(error) from error

    def get(self, key: str, timeout: float) -> bytes | None:
        left = timeout
        while True:
            wait = min(left, _WAIT)
            try:
                if wait > 0:
                    self._listen.wait([_PREFIX + key], datetime.timedelta(seconds=wait))
                elif not self._listen.check([_PREFIX + key]):
                    return None
                return bytes(self._listen.get(_PREFIX + key))
            except self._missing:
                left -= wait
                if left <= 0:
                    return None
            except self._broken as error:
                raise _lost(error) from error

    def drop(self, key: str) -> None:
        try:
            self._speak.delete_key(_PREFIX + key)
        except RuntimeError:  # a FileStore cannot
            return

    def close(self) -> None:
        return


def _lost(error: Exception) -> StorageError:
    return StorageError(
        f"the store of torch.distributed is gone ({str(error).splitlines()[0]:.200}): has rank 0 or the launcher ended?"
    )
