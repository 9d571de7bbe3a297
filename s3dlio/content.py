"""What a save stores: a state's shard image or a payload, as one source of raw bytes with its tree and table.

Pure but for reading the user's memory when the source is copied. ``store`` (states, payloads) and ``bytes_level``
(payloads) make a ``Content`` of what the user hands in; a job of ``writer`` copies it.
"""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .engine.errors import UnsupportedError
from .engine.messages import Runs
from .engine.source import BufferSource, Source
from .payload import as_buffer

if TYPE_CHECKING:
    from .tensors import Flattened, Layout

Pieces = Callable[[], Iterator[bytes]]
"""Gives a JSON text in pieces."""


@dataclass(frozen=True, slots=True)
class Content:
    """Raw bytes, the element widths in them, and for a state the JSON pieces of its tree and table."""

    source: Source
    runs: Callable[[int, int], Runs] | None = None
    tree: Pieces | None = None
    table: Pieces | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """A state whose structure was read and checked; ``content()`` lays it out, which may happen in another thread.

    ``flat``: its tree and leaves; ``None`` for a payload.
    """

    framework: str
    content: Callable[[], Content]
    flat: Flattened | None = None


def draft_of(state: Any, *, alone: bool = True) -> Draft:
    """The draft of ``state``; ``UnsupportedError`` names the path of what cannot be stored.

    ``alone``: no other rank stores the rest of arrays of which this one has a part.
    """
    if isinstance(state, (bytes, bytearray, memoryview, mmap.mmap)):
        payload = payload_of(state)
        return Draft("bytes", lambda: payload)
    from .tensors import flatten

    flat = flatten(state)
    if alone:
        for index in flat.leaves.parts:
            raise UnsupportedError(
                f"state: {flat.leaves.names[index]}: some of its shards lie in other processes, and this save is of "
                "one process: save on all ranks, with coordinator='auto'"
            )
    found = {spec.framework for spec in flat.leaves.specs}
    framework = "pytorch" if "torch" in found else "jax" if "jax" in found else "numpy"
    return Draft(framework, lambda: _lay_out(flat), flat)


def _lay_out(flat: Flattened) -> Content:
    from .tensors import plan_layout

    return content_of(flat, plan_layout(flat))


def content_of(flat: Flattened, layout: Layout) -> Content:
    """The content of a state by its layout."""
    from .tensors import dump_json_pieces, dump_tree

    tree, table = flat.tree, layout.table  # without the leaves: only the source keeps the user's arrays
    return Content(
        source_of(flat, layout),
        width_runs(layout.width_runs),
        lambda: dump_tree(tree),
        lambda: dump_json_pieces(table),
    )


def source_of(flat: Flattened, layout: Layout) -> Source:
    """The bytes of a state by its layout, read from the user's arrays as they are copied."""
    from .tensors import ShardImage

    return _Image(ShardImage(flat.leaves, layout))


def payload_of(data: Any) -> Content:
    """The content of one buffer, read in place; an array that is not C-contiguous is gathered once."""
    return Content(BufferSource(buffer_of(data)))


def buffer_of(data: Any) -> memoryview:
    """``data`` as bytes; ``UnsupportedError`` (a ``TypeError``) for what is no buffer."""
    if isinstance(data, str):
        raise UnsupportedError("a str is no payload: encode it first")
    try:
        return as_buffer(data)
    except (TypeError, ValueError, BufferError) as error:
        gathered = _gather(data)
        if gathered is None:
            what = type(data).__name__
            raise UnsupportedError(f"a payload must be a buffer of bytes, not {what} ({error})") from None
        return gathered


def _gather(data: Any) -> memoryview | None:
    """A C-contiguous copy of an array whose memory is not (or whose dtype has no buffer format)."""
    import numpy as np

    if not isinstance(data, (np.ndarray, memoryview)):
        return None
    array = np.asarray(data)
    if array.dtype.hasobject:
        return None
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return flat.data if flat.size else memoryview(b"")


def width_runs(runs: tuple[tuple[int, int, int], ...]) -> Callable[[int, int], Runs]:
    """A function giving the runs within [start, stop), relative to ``start``."""
    starts = [run[0] for run in runs]

    def within(start: int, stop: int) -> Runs:
        found = []
        for first, last, width in runs[max(0, bisect_right(starts, start) - 1) :]:
            if first >= stop:
                break
            begin, end = max(first, start), min(last, stop)
            if width > 1 and end > begin:
                found.append((begin - start, end - start, width))
        return tuple(found)

    return within


class _Image:
    """A shard image as a job's source."""

    threads = 1

    def __init__(self, image: Any) -> None:
        self.total: int = image.size
        self.fill: Callable[[int, int, int], None] = image.copy_to
