"""Copies between tensors on CUDA devices and host memory, on streams of their own beside the training's.

Owns those streams and three orders: what the caller had enqueued when its state was read comes before a copy; a copy
has arrived when the call that made it returns, for a worker has the memory next; and whatever the device has of it is
not used for anything else meanwhile. Knows nothing of pools or page-locking: a copy goes straight into memory that is
page-locked, and through a buffer of CUDA's otherwise. Called by ``torch_leaf``; ``image`` opens ``together`` around the
leaves of a range, so that they are waited for once. Imports no torch: who has a tensor on a device has it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..engine.errors import S3dlioError
from .copying import gather, scatter
from .torch_boxes import TensorBoxes, byte_view, bytes_at, is_plain

Tensor = Any
Device = Any


class Mark:
    """How far the caller's streams had come when its state was read."""

    __slots__ = ("_events",)

    def __init__(self) -> None:
        self._events: dict[Device, Any] = {}

    def include(self, device: Device) -> None:
        """There is a tensor on this device."""
        self._events.setdefault(device, None)

    def set(self) -> None:
        """Mark the present streams of all these devices; in the caller's thread, once everything was read."""
        for device in self._events:
            with _telling(f"the work on {device} before the save failed"):
                cuda = _cuda()
                event = self._events[device] = cuda.Event()
                event.record(cuda.current_stream(device))

    def hold(self, stream: Any, device: Device) -> None:
        """Let what is enqueued on ``stream`` from now on wait until the mark is reached."""
        stream.wait_event(self._events[device])


class DeviceTensor:
    """A tensor whose bytes as of ``mark`` are to be copied to the host."""

    __slots__ = ("_mark", "tensor")

    def __init__(self, tensor: Tensor, mark: Mark) -> None:
        mark.include(tensor.device)
        self.tensor = tensor
        self._mark = mark

    def copy_to(self, name: str, address: int, start: int, stop: int) -> None:
        """Write bytes [start, stop) of the image to memory at ``address``; ``together`` tells when they are there."""
        if start == stop:
            return
        with together() as copies, _telling(f"{name} could not be copied"), copies.beside(self.tensor, self._mark):
            if is_plain(self.tensor):
                bytes_at(address, stop - start).copy_(byte_view(self.tensor)[start:stop], non_blocking=True)
            else:  # box by box: torch makes each contiguous on the device, in this stream, and waits for it
                gather(TensorBoxes(self.tensor), address, start, stop)


def copy_to_device(tensor: Tensor, address: int, start: int, stop: int) -> None:
    """Read bytes [start, stop) of a tensor's image from memory at ``address``, as ``DeviceTensor.copy_to``."""
    if start == stop:
        return
    with together() as copies, _telling(f"a tensor on {tensor.device} could not be filled"), copies.beside(tensor):
        if is_plain(tensor):
            byte_view(tensor)[start:stop].copy_(bytes_at(address, stop - start), non_blocking=True)
        else:
            scatter(TensorBoxes(tensor), address, start, stop)


def wait_for_caller(device: Device) -> None:
    """Wait for what this thread has enqueued on a device: it may still write to, or read, what is loaded into next."""
    with _telling(f"the work on {device} before the load failed"):
        _cuda().current_stream(device).synchronize()


@contextmanager
def together() -> Iterator[_Copies]:
    """Copies of this thread within it run beside each other; when it ends, by an error too, none is under way."""
    copies: _Copies | None = getattr(_here, "copies", None)
    if copies is not None:  # the outer one waits
        yield copies
        return
    copies = _here.copies = _Copies()
    try:
        yield copies
    finally:
        _here.copies = None
        copies.wait()


class _Side:
    """A stream for copies, and the event that ends a wait for them."""

    __slots__ = ("arrived", "stream")

    def __init__(self, cuda: Any, device: Device) -> None:
        self.stream = cuda.Stream(device)
        self.arrived = cuda.Event(blocking=True)  # a wait for it sleeps: others would take a core from the training


class _Copies:
    """The copies of one thread that may be under way, at most one stream on each device."""

    def __init__(self) -> None:
        self._sides: dict[Device, _Side] = {}
        self._held: list[tuple[Mark, Device]] = []

    @contextmanager
    def beside(self, tensor: Tensor, mark: Mark | None = None) -> Iterator[None]:
        """Within it this thread works on the tensor's device, in a stream that waits for ``mark``."""
        cuda, device = _cuda(), tensor.device
        # The device first. A thread starts on device 0, and a stream of another one sets that again when it ends,
        # which takes memory for a context there.
        with cuda.device(device):
            side = self._sides.get(device)
            if side is None:
                side = self._sides[device] = _lend(cuda, device)
            if mark is not None and (mark, device) not in self._held:
                mark.hold(side.stream, device)
                self._held.append((mark, device))
            _own(tensor).record_stream(side.stream)  # freed meanwhile, it is not handed out until the copy is done
            with cuda.stream(side.stream):
                yield

    def wait(self) -> None:
        """Wait until everything has arrived; ``S3dlioError`` if a device says that it has not."""
        errors = []
        for device, side in self._sides.items():
            try:
                with _telling(f"copies between {device} and the host failed"):
                    side.arrived.record(side.stream)
                    side.arrived.synchronize()
            except S3dlioError as error:
                errors.append(error)
            else:
                _idle.setdefault(device, []).append(side)
        if errors:
            raise errors[0]


# Kept for the next copies: torch hands out 32 streams of a device in turn, and one made for each thread of each save
# would soon be one that the training uses too.
_idle: dict[Device, list[_Side]] = {}
_here = threading.local()


def _lend(cuda: Any, device: Device) -> _Side:
    try:
        return _idle[device].pop()
    except LookupError:
        return _Side(cuda, device)


def _own(tensor: Tensor) -> Tensor:
    """The tensor without lazy conjugation and negation, which might be resolved into memory of its own."""
    tensor = tensor.detach()
    tensor = tensor.conj() if tensor.is_conj() else tensor
    return tensor._neg_view() if tensor.is_neg() else tensor


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """Make torch's errors ours."""
    try:
        yield
    except S3dlioError:
        raise
    except RuntimeError as error:
        raise S3dlioError(
            f"{what}: {error} (if it is no lack of memory, an earlier kernel may be the cause: CUDA_LAUNCH_BLOCKING=1 "
            "shows which)"
        ) from error


def _cuda() -> Any:
    return sys.modules["torch"].cuda
