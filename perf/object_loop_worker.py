"""One of the two processes of the bare loop: an SDK, threads, and nothing of ours.

Copies each of its parts into warm shared memory, takes CRC-32C and CRC-64/NVME and sends it; or fetches it into warm
memory, checks its CRC-32C and brings it to where it belongs. The settings of the clients are those found best by
measurement, written out here once more on purpose: a flaw of the engine's own would otherwise be in the limit too.
``object_loops`` starts it and speaks JSON lines with it.
"""

from __future__ import annotations

import base64
import json
import mmap
import os
import queue
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from awscrt import checksums  # type: ignore[import-untyped]

PART = 16 << 20
_SLICE = 1 << 20  # of what a read from a socket fills: it stays in the cache
_PIECE = 4 << 20  # of what is sent at once
THREADS_MOST = 8

Part = dict[str, Any]


class Client(Protocol):
    """What the loop asks of an SDK."""

    def send(self, upload: str, number: int, body: memoryview, crc64: int) -> str:
        """Store a part; its tag."""

    def fetch(self, start: int, into: memoryview) -> None:
        """Fill ``into`` with the object's bytes from ``start``."""


class View:
    """Shared memory as a file that can be read again and copies nothing.

    Gives more than it is asked for, which is fine where nobody signs the payload: 128 KiB, as botocore asks, costs 0.38
    CPU seconds per GiB to send, 4 MiB 0.23.
    """

    def __init__(self, view: memoryview) -> None:
        self._view, self._at = view, 0

    def __len__(self) -> int:
        return len(self._view)

    def read(self, size: int = -1) -> memoryview:
        end = len(self._view) if size < 0 else self._at + max(size, _PIECE)
        piece = self._view[self._at : end]
        self._at += len(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, len(self._view))[whence]
        return self._at

    def tell(self) -> int:
        return self._at


class Boto3:
    """boto3: unsigned payload, the caller's checksum, no retries."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self.client = s3_client(told)
        self._at = {"Bucket": told["bucket"], "Key": told["key"]}

    def send(self, upload: str, number: int, body: memoryview, crc64: int) -> str:
        checksum = base64.b64encode(crc64.to_bytes(8, "big")).decode()
        reply = self.client.upload_part(
            **self._at, UploadId=upload, PartNumber=number, Body=View(body), ChecksumCRC64NVME=checksum
        )
        tag: str = reply["ETag"]
        return tag

    def fetch(self, start: int, into: memoryview) -> None:
        reply = self.client.get_object(**self._at, Range=f"bytes={start}-{start + len(into) - 1}")
        _fill(reply["Body"], into)


class Azure:
    """azure-storage-blob: a view as body, the caller's checksum, the raw response of the generated client."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self.client = azure_client(told)

    def send(self, upload: str, number: int, body: memoryview, crc64: int) -> str:
        block = block_id(upload, number)
        checksum = base64.b64encode(crc64.to_bytes(8, "little")).decode()
        self.client.stage_block(block, body, length=len(body), headers={"x-ms-content-crc64": checksum})
        return block

    def fetch(self, start: int, into: memoryview) -> None:
        response = self.client._client.blob.download(
            headers={"x-ms-range": f"bytes={start}-{start + len(into) - 1}"},
            cls=lambda pipeline, _, __: pipeline.http_response,
        )
        try:
            _fill(response.internal_response.raw, into)
        finally:
            response.internal_response.close()


CLIENTS: dict[str, type[Boto3] | type[Azure]] = {"s3": Boto3, "az": Azure}


def s3_client(told: Mapping[str, Any]) -> Any:
    """A boto3 client with the measured settings."""
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        endpoint_url=told["endpoint_url"],
        aws_access_key_id=told["access_key_id"],
        aws_secret_access_key=told["secret_access_key"],
        region_name=told["region"],
        config=Config(
            s3={"addressing_style": "path", "payload_signing_enabled": False},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            max_pool_connections=THREADS_MOST,
            retries={"total_max_attempts": 1},
        ),
    )


def azure_client(told: Mapping[str, Any]) -> Any:
    """A client of one blob with the measured settings."""
    import requests
    from azure.core.pipeline.transport import RequestsTransport
    from azure.storage.blob import BlobClient
    from requests.adapters import HTTPAdapter

    session = requests.Session()
    session.mount("http://", HTTPAdapter(pool_connections=1, pool_maxsize=THREADS_MOST))
    return BlobClient(
        told["endpoint_url"],
        told["bucket"],
        told["key"],
        credential=told["account_key"],
        transport=RequestsTransport(session=session, connection_data_block_size=_SLICE),
        retry_total=0,
    )


def block_id(upload: str, number: int) -> str:
    """Of one length for all parts, as Azure wants."""
    return f"{upload}-{number:05d}"


def _fill(body: Any, into: memoryview) -> None:
    done = 0
    while done < len(into):
        count = body.readinto(into[done : done + _SLICE])
        if not count:
            raise OSError(f"the store sent {done} bytes of {len(into)}")
        done += count


class Worker:
    """The parts of one process: every other one of the object."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self._client: Client = CLIENTS[told["kind"]](told)
        self._size: int = told["size"]
        self._starts = range(told["first"] * PART, self._size, told["of"] * PART)
        self._source = _map(told["source"])
        self._target = _map(told["target"])
        self._crcs: dict[int, int] = {}
        slots = mmap.mmap(-1, THREADS_MOST * PART)
        slots.write(bytes(len(slots)))  # warm
        self._slots: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        for start in range(0, len(slots), PART):
            self._slots.put(memoryview(slots)[start : start + PART])

    def save(self, threads: int, upload: str) -> list[Part]:
        """Send all parts."""

        def one(start: int) -> Part:
            slot = self._slots.get()
            try:
                with slot[: self._length(start)] as part:
                    _copy(part, self._source[start : start + len(part)])
                    self._crcs[start] = checksums.crc32c(part)
                    crc64 = checksums.crc64nvme(part)
                    number = start // PART + 1
                    tag = self._client.send(upload, number, part, crc64)
                    return {"number": number, "tag": tag, "crc64": crc64, "size": len(part)}
            finally:
                self._slots.put(slot)

        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(one, self._starts))

    def load(self, threads: int, memory: str) -> None:
        """Fetch all parts into warm memory, and write them to new memory once they are checked.

        Written by its descriptor, new memory costs 0.45 CPU seconds per GiB; copied into through a mapping, whose pages
        fault one by one, 0.9.
        """
        fd = os.open(memory, os.O_RDWR)
        try:
            self._fetch_each(threads, lambda part, start: os.pwrite(fd, part, start))
        finally:
            os.close(fd)

    def load_into(self, threads: int) -> None:
        """Fetch all parts into warm memory, and copy them to existing memory once they are checked."""
        self._fetch_each(threads, lambda part, start: _copy(self._target[start : start + len(part)], part))

    def _fetch_each(self, threads: int, land: Callable[[memoryview, int], object]) -> None:
        def one(start: int) -> None:
            slot = self._slots.get()
            try:
                with slot[: self._length(start)] as part:
                    self._client.fetch(start, part)
                    if checksums.crc32c(part) != self._crcs[start]:
                        raise ValueError(f"the part at {start} came back with other bytes")
                    land(part, start)
            finally:
                self._slots.put(slot)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, self._starts))

    def _length(self, start: int) -> int:
        return min(PART, self._size - start)


def _map(path: str) -> memoryview:
    fd = os.open(path, os.O_RDWR)
    try:
        return memoryview(mmap.mmap(fd, 0))
    finally:
        os.close(fd)


def _copy(target: memoryview, source: memoryview) -> None:
    """With the GIL released, which an assignment of slices is not."""
    np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))


def serve() -> None:
    """Answer each line of JSON, a method's name and its arguments, with what it returned."""
    worker = Worker(json.loads(sys.stdin.readline()))
    print("null", flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(getattr(worker, name)(*arguments)), flush=True)


if __name__ == "__main__":
    serve()
