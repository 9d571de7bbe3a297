"""What every backend checks before it touches its store: limits, parts, conditions.

Pure functions over the contract's records; called by each backend with its own ``Limits``, so that a wrong call fails
alike and with the same words on every store.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..contract import PROBE, Limits, PartReceipt, Segments, check_key
from ..errors import ConfigError, CorruptError, PreconditionError


def size_of(data: Segments) -> int:
    """Bytes in all segments; ``ConfigError`` if one is no contiguous view of plain bytes."""
    for view in data:
        if view.itemsize != 1 or not view.c_contiguous:
            raise ConfigError(f"a segment must be a contiguous view of bytes, not of format {view.format!r}")
    return sum(view.nbytes for view in data)


def check_put(limits: Limits, key: str, data: Segments, if_absent: bool, if_match: str | None) -> int:
    """The size of a whole object that may be put; ``ConfigError`` if it is too large or the conditions exclude."""
    check_key(key)
    if if_absent and if_match is not None:
        raise ConfigError(f"{key}: if_absent and if_match exclude each other")
    size = size_of(data)
    if size > limits.put_max:
        raise ConfigError(f"{key}: {size} bytes are more than one put takes ({limits.put_max}); use an upload")
    return size


def check_part(limits: Limits, key: str, number: int, offset: int, data: Segments) -> int:
    """The size of a part that may be stored; ``ConfigError`` if its number, place or size breaks ``limits``."""
    check_key(key)
    if not 1 <= number <= limits.parts_max:
        raise ConfigError(f"{key}: part {number} is outside 1..{limits.parts_max}")
    if offset < 0 or offset % limits.alignment:
        raise ConfigError(f"{key}: part {number} begins at {offset}, not at a multiple of {limits.alignment}")
    size = size_of(data)
    if size > limits.part_max:
        raise ConfigError(f"{key}: part {number} of {size} bytes is larger than {limits.part_max}")
    return size


def check_parts(limits: Limits, key: str, parts: Sequence[PartReceipt]) -> int:
    """The size of the object that ``parts`` make.

    ``ConfigError`` if there is none or one but the last is below ``part_min``; ``CorruptError`` if numbers or offsets
    leave a gap, overlap or are out of order.
    """
    check_key(key)
    if not parts:
        raise ConfigError(f"{key}: an upload has at least one part (of 0 bytes for an empty object)")
    end = 0
    for number, part in enumerate(parts, start=1):
        if part.number != number or part.offset != end or part.size < 0:
            raise CorruptError(
                f"{key}: part {part.number} holds {part.size} bytes from {part.offset}; "
                f"part {number} from {end} was expected"
            )
        if part.size < limits.part_min and number < len(parts):
            raise ConfigError(f"{key}: part {number} of {part.size} bytes is smaller than {limits.part_min}")
        end += part.size
    return end


def check_range(key: str, offset: int, into: memoryview) -> None:
    """``ConfigError`` if a range cannot be read into this buffer."""
    check_key(key)
    if offset < 0:
        raise ConfigError(f"{key}: a range cannot begin at {offset}")
    if into.readonly or into.itemsize != 1 or not into.c_contiguous:
        raise ConfigError(f"{key}: a range is read into a writable contiguous view of bytes")


def check_version(what: str, etag: str, if_match: str | None) -> None:
    """``PreconditionError`` unless what is read is the version ``if_match``, where one is asked for."""
    if if_match is not None and etag != if_match:
        raise overwritten(what)


def overwritten(what: str) -> PreconditionError:
    """That the version of which a part is read already is gone."""
    return PreconditionError(f"{what} was overwritten while it was read: read it again")


def check_listed(name: str) -> None:
    """``ConfigError`` for what no listing tells, as the name of an object to delete."""
    if not name or "\0" in name:
        raise ConfigError(f"{name!r} is the name of no object")


def folder_of(prefix: str) -> str:
    """The folder all keys with this ``prefix`` lie in, "" for the root; ``ConfigError`` if it could leave the root."""
    folder = prefix.rpartition("/")[0]
    if folder or prefix.startswith("/"):
        check_key(folder)
    return folder


def is_probe(name: str) -> bool:
    """Whether a key or a prefix is that of objects by which a store is asked what it can do."""
    return name.rpartition("/")[2].startswith(PROBE)
