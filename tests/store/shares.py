"""What the ranks of a world store of their states, in memory: the way of a group save without a pool or a board."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s3dlio.content import draft_of
from s3dlio.coordination.verdict import Verdict, decide
from s3dlio.group_content import Agreed, GroupContent, group_content
from s3dlio.tensors import Table, parse_table
from s3dlio.tensors.box import Part
from tests.tensors.shards import address_of

Parts = Mapping[str, Part]
"""By name of a leaf, of which array it is a part."""


@dataclass(frozen=True, slots=True)
class Share:
    """A rank's shard: tree and table as they are parsed, and its bytes."""

    tree: Any
    table: Table
    data: bytes

    def image(self, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size]


def shares(states: Sequence[Any], parts: Sequence[Parts] | None = None) -> list[Share]:
    """The shard of each rank, of the state of each; ``parts``: what of a rank's leaves is part of an array."""
    contents = [_content(state, parts[rank] if parts else {}) for rank, state in enumerate(states)]
    images = [_image(content) for content in contents]

    def hello(rank: int) -> bytes:
        image = memoryview(images[rank])
        return contents[rank].hello(3, len(states), lambda start, stop: [image[start:stop]]).encode()

    verdict = decide(((rank, hello(rank)) for rank in range(len(states))), contents[0].names, "now")
    return [_share(content, images[rank], verdict, rank, len(states)) for rank, content in enumerate(contents)]


def _content(state: Any, parts: Parts) -> GroupContent:
    draft = draft_of(state, alone=False)
    assert draft.flat is not None
    leaves = draft.flat.leaves
    leaves.parts.update((leaves.names.index(name), part) for name, part in parts.items())
    for index, part in leaves.parts.items():
        assert part.stored_shape == leaves.specs[index].shape
    return group_content(draft)


def _image(content: GroupContent) -> bytearray:
    image = bytearray(content.source.total)
    content.source.fill(address_of(image), 0, len(image))
    return image


def _share(content: GroupContent, image: bytearray, verdict: Verdict, rank: int, world: int) -> Share:
    agreed = content.agreed(verdict, rank, world)
    data = bytearray(agreed.content.source.total)
    agreed.content.source.fill(address_of(data), 0, len(data))
    assert squeezed(image, agreed.moves, agreed.head, len(data)) == data, "what was captured becomes what is stored"
    return Share(_parsed(agreed, "tree"), parse_table(_parsed(agreed, "table"), len(data)), bytes(data))


def squeezed(image: bytearray, moves: Iterable[tuple[int, int, int]], head: Iterable[bytes], total: int) -> bytearray:
    """What ``Capture.squeeze`` makes of an image."""
    for target, source, length in moves:
        assert target <= source, "a leaf would go behind where it was, over what was not moved yet"
        image[target : target + length] = image[source : source + length]
    top = b"".join(head)
    image[: len(top)] = top
    return image[:total]


def _parsed(agreed: Agreed, what: str) -> Any:
    pieces = getattr(agreed.content, what)
    return json.loads(b"".join(pieces()))
