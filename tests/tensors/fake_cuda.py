"""A CUDA runtime as far as copies can tell: devices, events, and streams that do nothing until they are waited for.

Tensors in host memory are declared to lie on a device. What is enqueued for them runs as late as the rules allow: a
copy that nobody waited for has not happened, and one that waited for too little copies old bytes. Wrong use fails: work
for a device while another one is set, leaving a stream with another device set, an event that was never recorded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch


class Stream:
    """Work in order; ``advance`` does it up to a place in it."""

    def __init__(self, fake: FakeCuda, device: torch.device, name: str) -> None:
        self.device = device
        self.name = name
        self._fake = fake
        self._work: list[Callable[[], object]] = []
        self._done = 0

    def __repr__(self) -> str:
        return self.name

    @property
    def end(self) -> int:
        return self._done + len(self._work)

    def enqueue(self, work: Callable[[], object]) -> None:
        with self._fake.lock:
            self._work.append(work)

    def advance(self, end: int) -> None:
        with self._fake.lock:
            while self._done < end:
                self._done += 1
                self._work.pop(0)()

    def wait_event(self, event: Event) -> None:
        self._fake.note("wait", self)
        self.enqueue(event.reach)

    def synchronize(self) -> None:
        self._fake.note("synchronize", self)
        self._fake.fail("synchronize")
        self.advance(self.end)


class Event:
    """A place in a stream."""

    def __init__(self, fake: FakeCuda, blocking: bool) -> None:
        self._fake = fake
        self._blocking = blocking
        self._place: tuple[Stream, int] | None = None

    def record(self, stream: Stream) -> None:
        self._fake.note("record", stream)
        self._fake.fail("record")
        self._place = stream, stream.end

    def reach(self) -> None:
        assert self._place is not None, "an event that was never recorded orders nothing"
        stream, end = self._place
        stream.advance(end)

    def synchronize(self) -> None:
        assert self._blocking, "the waiting thread would take a core"
        assert self._place is not None
        self._fake.note("synchronize", self._place[0])
        self._fake.fail("synchronize")
        self.reach()


class FakeCuda:
    """What stands for ``torch.cuda`` while the test runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lock = threading.RLock()
        self.log: list[tuple[str, str, str]] = []
        """What was asked of which stream in which thread, in order."""
        self.failures: dict[str, list[Exception]] = {}
        """What fails, and how often."""
        self.noted_for: dict[int, set[Stream]] = {}
        """``record_stream``: streams by the address of the memory that they use."""
        self.made: list[Stream] = []
        self._where: dict[int, torch.device] = {}
        self._defaults: dict[torch.device, Stream] = {}
        self._here = threading.local()
        for name, value in {
            "Stream": self.stream,
            "Event": lambda blocking=False: Event(self, blocking),
            "current_stream": self.current,
            "device": self._setting,
            "stream": self._entering,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr("s3dlio.tensors.cuda_copies._idle", {})
        real = torch.Tensor.copy_

        def copy_(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
            device = self.where(target) or self.where(source)
            if device is None:
                return real(target, source)
            assert device == self.device_set(), f"work for {device} while {self.device_set()} is set"
            stream = self.current(device)
            self.note("copy", stream)
            self.fail("copy")
            stream.enqueue(lambda: real(target, source))
            if not non_blocking:
                stream.advance(stream.end)
            return target

        def record_stream(tensor: torch.Tensor, stream: Stream) -> None:
            lazy = tensor.is_conj() or tensor.is_neg()
            assert not lazy, "it would be resolved into other memory first"
            self.noted_for.setdefault(tensor.untyped_storage().data_ptr(), set()).add(stream)

        for name, member in {
            "copy_": copy_,
            "record_stream": record_stream,
            "is_cuda": property(lambda tensor: self.where(tensor) is not None),
            "is_cpu": property(lambda tensor: self.where(tensor) is None),
            "device": property(lambda tensor: self.where(tensor) or torch.device("cpu")),
        }.items():
            monkeypatch.setattr(torch.Tensor, name, member)

    # what tests arrange

    def put(self, tensor: torch.Tensor, device: str = "cuda:1") -> torch.Tensor:
        """Declare that a tensor, and whatever shares its memory, lies on a device."""
        self._where[tensor.untyped_storage().data_ptr()] = torch.device(device)
        return tensor

    @contextmanager
    def using(self, stream: Stream) -> Iterator[None]:
        """Make a stream the thread's current one of its device."""
        before = self.current(stream.device)
        self._streams()[stream.device] = stream
        try:
            yield
        finally:
            self._streams()[stream.device] = before

    # what they look at

    def where(self, tensor: torch.Tensor) -> torch.device | None:
        return self._where.get(tensor.untyped_storage().data_ptr())

    def device_set(self) -> torch.device:
        """The thread's device; threads start on the first."""
        found: torch.device = getattr(self._here, "device", torch.device("cuda:0"))
        return found

    def noted(self, *what: str) -> list[tuple[str, str]]:
        return [entry[:2] for entry in self.log if entry[0] in what]

    # torch.cuda

    def stream(self, device: torch.device | str = "cuda:1") -> Stream:
        with self.lock:
            self.made.append(Stream(self, torch.device(device), f"stream {len(self.made) + 1}"))
            return self.made[-1]

    def current(self, device: torch.device | str = "cuda:1") -> Stream:
        device = torch.device(device)
        with self.lock:  # of the default streams each device has one, for all threads
            default = self._defaults.setdefault(device, Stream(self, device, f"default of {device}"))
        return self._streams().get(device, default)

    @contextmanager
    def _setting(self, device: torch.device) -> Iterator[None]:
        before = self.device_set()
        self._here.device = device
        try:
            yield
        finally:
            self._here.device = before

    def _entering(self, stream: Stream) -> AbstractContextManager[None]:
        assert stream.device == self.device_set(), "leaving it would set another device, and make a context there"
        return self.using(stream)

    # how it works

    def note(self, what: str, stream: Stream) -> None:
        with self.lock:
            self.log.append((what, stream.name, threading.current_thread().name))

    def fail(self, what: str) -> None:
        if self.failures.get(what):
            raise self.failures[what].pop(0)

    def _streams(self) -> dict[torch.device, Stream]:
        found: dict[torch.device, Stream] = self._here.__dict__.setdefault("streams", {})
        return found
