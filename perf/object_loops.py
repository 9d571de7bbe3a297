"""The limit of an object store's client: two processes of an SDK's own calls that do nothing but what must be done.

Owns the memories both processes share, and what opens and completes an upload. Saves as the engine does, in parts of
16 MiB: one copy into shared memory, CRC-32C, CRC-64/NVME, an upload whose whole checksum is given. Loads through warm
memory into new or existing memory, each part checked before. ``object_sink`` measures it.
"""

from __future__ import annotations

import base64
import json
import math
import mmap
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from awscrt import checksums  # type: ignore[import-untyped]

from .object_loop_worker import Part, azure_client, s3_client

PROCESSES = 2
THREADS = (1, 2, 4, 8)
_KEY = "loop/object.bin"


class Loop:
    """Two processes; ``threads`` of each are chosen by ``tune``, for each kind of work."""

    def __init__(self, kind: str, options: Mapping[str, str], bucket: str, data: torch.Tensor) -> None:
        self._told: dict[str, Any] = {**options, "kind": kind, "bucket": bucket, "key": _KEY, "size": data.nbytes}
        self._calls = _S3(self._told) if kind == "s3" else _Azure(self._told)
        self.name = f"bare loop of {PROCESSES}: {'boto3' if kind == 's3' else 'azure-storage-blob'}"
        self.threads = dict.fromkeys(("save", "load", "load_into"), THREADS[-1])
        self._source, self._target = _Shared(data.nbytes), _Shared(data.nbytes)
        np.copyto(self._source.array, data.numpy())
        self._target.array.fill(0)
        self._processes = [self._start(number) for number in range(PROCESSES)]
        try:
            for process in self._processes:
                _answer(process)
        except BaseException:
            self.close()
            raise

    def save(self) -> object:
        upload = self._calls.begin()
        found: list[list[Part]] = self._ask("save", upload)
        self._calls.complete(upload, sorted((p for parts in found for p in parts), key=lambda p: int(p["number"])))
        return None

    def load(self) -> object:
        """The object in new memory."""
        memory = _Shared(self._told["size"])
        self._ask("load", memory.path)
        return memory

    def load_into(self) -> object:
        """The object in memory that was there before."""
        self._ask("load_into")
        return None

    def tune(self, works: tuple[str, ...] = ("save", "load", "load_into")) -> None:
        """Give each kind of work the number of threads it is fastest with; leaves an object stored."""
        for work in works:
            act: Callable[[], object] = getattr(self, work)
            self.save()  # warms up, and leaves something to load
            taken = dict.fromkeys(THREADS, math.inf)
            for threads in THREADS * 2:  # the better of two: what else the machine does only ever slows
                self.threads[work] = threads
                started = time.perf_counter()
                act()
                taken[threads] = min(taken[threads], time.perf_counter() - started)
            self.threads[work] = min(taken, key=lambda threads: taken[threads])

    def check(self) -> None:
        """``ValueError`` unless both loads give back what was saved."""
        memory = self.load()
        assert isinstance(memory, _Shared)
        self._target.array.fill(0)
        self.load_into()
        if not np.array_equal(memory.array, self._source.array) or not np.array_equal(
            self._target.array, self._source.array
        ):
            raise ValueError(f"{self.name} gave back other bytes than it got")

    def clear(self) -> None:
        self._calls.delete()

    def close(self) -> None:
        for process in self._processes:
            process.communicate()

    def _start(self, number: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "perf.object_loop_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
            text=True,
        )
        memories = {"source": self._source.path, "target": self._target.path}
        _tell(process, {**self._told, **memories, "first": number, "of": PROCESSES})
        return process

    def _ask(self, work: str, *arguments: str) -> list[Any]:
        for process in self._processes:
            _tell(process, [work, self.threads[work], *arguments])
        return [_answer(process) for process in self._processes]


class _S3:
    """What opens, completes and removes an object in S3."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self._client = s3_client(told)
        self._at = {"Bucket": told["bucket"], "Key": told["key"]}

    def begin(self) -> str:
        reply = self._client.create_multipart_upload(
            **self._at, ChecksumAlgorithm="CRC64NVME", ChecksumType="FULL_OBJECT"
        )
        upload: str = reply["UploadId"]
        return upload

    def complete(self, upload: str, parts: list[Part]) -> None:
        whole = size = 0
        listed = []
        for part in parts:
            whole = checksums.combine_crc64nvme(whole, part["crc64"], part["size"])
            size += part["size"]
            crc = _big_endian(part["crc64"])
            listed.append({"PartNumber": part["number"], "ETag": part["tag"], "ChecksumCRC64NVME": crc})
        self._client.complete_multipart_upload(
            **self._at,
            UploadId=upload,
            MultipartUpload={"Parts": listed},
            MpuObjectSize=size,
            ChecksumType="FULL_OBJECT",
            ChecksumCRC64NVME=_big_endian(whole),
        )

    def delete(self) -> None:
        self._client.delete_object(**self._at)


class _Azure:
    """What commits and removes a blob."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self._client = azure_client(told)

    def begin(self) -> str:
        return secrets.token_hex(8)

    def complete(self, _upload: str, parts: list[Part]) -> None:
        from azure.storage.blob import BlobBlock

        self._client.commit_block_list([BlobBlock(part["tag"]) for part in parts])

    def delete(self) -> None:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            self._client.delete_blob()
        except ResourceNotFoundError:
            return


class _Shared:
    """Memory that other processes can map by ``path``, as long as this lives."""

    def __init__(self, nbytes: int) -> None:
        self._fd = os.memfd_create("loop")
        os.ftruncate(self._fd, nbytes)
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"
        self.array = np.frombuffer(mmap.mmap(self._fd, nbytes), np.uint8)

    def __del__(self) -> None:
        os.close(self._fd)


def _big_endian(value: int) -> str:
    return base64.b64encode(value.to_bytes(8, "big")).decode()


def _tell(process: subprocess.Popen[str], message: object) -> None:
    assert process.stdin
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()


def _answer(process: subprocess.Popen[str]) -> Any:
    assert process.stdout
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a process of the bare loop ended with code {process.wait()}")
    return json.loads(line)
