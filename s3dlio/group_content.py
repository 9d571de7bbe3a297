"""What one rank of several saves: its whole state first, then, once the ranks have agreed, what it stores of it.

Pure but for reading bytes. Owns the layouts before and after the verdict and the digests that the ranks compare; knows
no board and no pool. ``group_saver`` takes it from step to step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .content import Content, Draft, content_of, source_of
from .coordination.verdict import DIGEST, Hello, Verdict, owners
from .engine.checksum import crc32c, crc64nvme
from .engine.source import Source
from .tensors import Flattened, Layout, plan_layout
from .tensors.layout import moves

Read = Callable[[int, int], Iterable[memoryview]]
"""Gives bytes [start, stop) of a layout's image, piece by piece."""

_BATCH = 4096


@dataclass(frozen=True, slots=True)
class GroupContent:
    """A rank's state laid out whole; ``flat`` is ``None`` for a payload, of which each rank stores its own."""

    flat: Flattened | None
    layout: Layout | None
    source: Source

    def hello(self, step: int, world_size: int, read: Read) -> Hello:
        """This rank's word; ``read`` gives the state's bytes by the whole layout."""
        if self.flat is None or self.layout is None:
            return Hello(step, world_size, "payload", b"")
        parts = {
            index: (part.shape, tuple((box.offsets, box.sizes) for box in part.boxes))
            for index, part in self.flat.leaves.parts.items()
        }
        return Hello(step, world_size, _structure(self.flat), _digests(self.flat, self.layout, read), parts)

    @property
    def names(self) -> list[str]:
        return self.flat.leaves.names if self.flat is not None else []

    def bare(self) -> GroupContent:
        """The same without the caller's arrays, whose bytes were copied."""
        if self.flat is None:
            return GroupContent(None, None, _Nothing(self.source.total))
        leaves = self.flat.leaves.bare(range(len(self.flat.leaves)))
        return GroupContent(
            Flattened(self.flat.tree, leaves, self.flat.aliases), self.layout, _Nothing(self.source.total)
        )

    def agreed(self, verdict: Verdict, rank: int, world_size: int) -> Agreed:
        """What this rank stores."""
        if self.flat is None or self.layout is None:
            return Agreed(Content(self.source), (), ())
        leaves = self.flat.leaves
        plain = [index for index in range(len(leaves)) if index not in leaves.parts]
        owner: list[int | None] = [None] * len(leaves)
        sizes = [leaves.specs[index].nbytes for index in plain]
        for index, who in zip(plain, owners(sizes, world_size), strict=True):
            owner[index] = who
        for index in verdict.differing:
            owner[index] = None
        elsewhere = {index for index, who in enumerate(owner) if who not in (None, rank)}
        elsewhere.update(verdict.elsewhere(rank))
        layout = plan_layout(self.flat, owners=owner, left_out=elsewhere, named=self.layout.named)
        gaps = moves(leaves.specs, self.layout.offsets, layout)
        return Agreed(content_of(self.flat, layout), gaps, layout.header)


@dataclass(frozen=True, slots=True)
class Agreed:
    """What a rank stores, and how its bytes come to lie there: ``moves`` and ``head`` as in ``Capture.squeeze``."""

    content: Content
    moves: Iterable[tuple[int, int, int]]
    head: Iterable[bytes]


def group_content(draft: Draft) -> GroupContent:
    """Lay a draft out whole."""
    if draft.flat is None:
        return GroupContent(None, None, draft.content().source)
    layout = plan_layout(draft.flat)
    return GroupContent(draft.flat, layout, source_of(draft.flat, layout))


def read_source(source: Source, scratch: memoryview, address: int) -> Read:
    """Reads from the caller's own arrays, through ``scratch``, which lies at ``address``."""

    def read(start: int, stop: int) -> Iterator[memoryview]:
        for at in range(start, stop, len(scratch)):
            end = min(stop, at + len(scratch))
            source.fill(address, at, end)
            yield scratch[: end - at]

    return read


def _structure(flat: Flattened) -> str:
    """A digest of what the ranks must have in common; what they have of an array on several ranks is their own."""
    digest = hashlib.blake2b(digest_size=16)
    leaves = flat.leaves
    for start in range(0, len(leaves), _BATCH):
        rows = []
        for index in range(start, min(start + _BATCH, len(leaves))):
            part, spec = leaves.parts.get(index), leaves.specs[index]
            rows.append(
                [leaves.names[index], spec.form, spec.dtype, part.shape if part else spec.shape, part is not None]
            )
        digest.update(json.dumps(rows).encode())
    return digest.hexdigest()


def _digests(flat: Flattened, layout: Layout, read: Read) -> bytes:
    made = bytearray(DIGEST * len(flat.leaves))
    for index in layout.order:
        start = layout.offsets[index]
        strong, other = 0, 0
        for piece in read(start, start + flat.leaves.specs[index].nbytes):
            strong, other = crc64nvme(piece, strong), crc32c(piece, other)
        made[index * DIGEST : (index + 1) * DIGEST] = strong.to_bytes(8, "big") + other.to_bytes(4, "big")
    return bytes(made)


class _Nothing:
    """A source that was copied: its size is all that is left of it."""

    threads = 1

    def __init__(self, total: int) -> None:
        self.total = total

    def fill(self, address: int, start: int, stop: int) -> None:
        raise AssertionError("copied already")
