"""Drives torch DCP with s3torchconnector's storage; runs in an environment of its own that also finds our packages.

Answers each line ``save``, ``load`` or ``check`` on its input with ``ok`` or what went wrong. Where the server is and
how to sign in stands in its environment.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from . import state
from .object_cases import check_same

THREADS = 2


class Dcp:
    """A world of one that saves a reference state of ``size`` bytes, a new checkpoint each time."""

    def __init__(self, uri: str, size: int) -> None:
        self._uri, self._step = uri, 0
        self._tree = state.reference(size)

    def save(self) -> object:
        from s3torchconnector.dcp import S3StorageWriter  # type: ignore[import-not-found]
        from torch.distributed.checkpoint.state_dict_saver import save

        self._step += 1
        save(self._tree, storage_writer=S3StorageWriter(**self._place(), thread_count=THREADS), no_dist=True)
        return None

    def load(self) -> object:
        from s3torchconnector.dcp import S3StorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        into = state.empty_like(self._tree)
        load(into, storage_reader=S3StorageReader(**self._place()), no_dist=True)
        return into

    def check(self) -> None:
        check_same("torch DCP", self._tree, self.load())

    def _place(self) -> dict[str, Any]:
        from s3torchconnector import S3ClientConfig  # type: ignore[import-not-found]

        return {
            "region": os.environ["AWS_REGION"],
            "path": f"{self._uri}/{self._step}",
            "s3client_config": S3ClientConfig(force_path_style=True),
        }


def main(uri: str, size: int) -> None:
    """Serve."""
    from torch.distributed.checkpoint.api import CheckpointException

    peer = Dcp(uri, size)
    print("ok", flush=True)
    for line in sys.stdin:
        try:
            getattr(peer, line.strip())()
            print("ok", flush=True)
        except (Exception, CheckpointException) as error:  # noqa: BLE001 - told to the benchmark
            print(f"{type(error).__name__}: {error}".replace("\n", " "), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
