"""The board of a jax.distributed job: the key-value service of its coordinator.

Owns nothing but the names of its keys. JAX offers the service to its own code only, so what is used here is pinned by a
test. Made by ``boards``.
"""

from __future__ import annotations

from typing import Any

from ..engine.errors import StorageError

_PREFIX = "s3dlio/"


class JaxBoard:
    """Values in the coordination service that ``jax.distributed.initialize`` started."""

    def __init__(self) -> None:
        from jax._src import distributed

        state = distributed.global_state
        self.rank: int = state.process_id
        self.world_size: int = state.num_processes
        self._client: Any = state.client

    def put(self, key: str, value: bytes) -> None:
        try:
            self._client.key_value_set_bytes(_PREFIX + key, value)
        except Exception as error:
            raise _lost(error) from error

    def get(self, key: str, timeout: float) -> bytes | None:
        try:
            return bytes(self._client.blocking_key_value_get_bytes(_PREFIX + key, max(1, round(timeout * 1000))))
        except Exception as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            raise _lost(error) from error

    def drop(self, key: str) -> None:
        try:
            self._client.key_value_delete(_PREFIX + key)
        except Exception as error:
            raise _lost(error) from error


def _lost(error: Exception) -> StorageError:
    return StorageError(
        f"the coordination service of jax.distributed failed ({str(error).splitlines()[0]:.200}): has process 0 ended?"
    )
