"""Names that Keras made up: which of them mean the same in another process.

Keras numbers the names it makes up (``dense``, ``dense_1``) over a whole process, so a model built second has other
paths than the one that was saved. Pure; knows strings only. Called by ``keras_state`` when paths differ.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Set

_NUMBERED = re.compile(r"(.+?)(?:_([0-9]+))?")


def made_up(named: Iterable[tuple[str, str]]) -> set[str]:
    """The base of each name (without its number) that Keras makes of the class, from pairs of name and class name."""
    pairs = ((_base(name), kind) for name, kind in named)
    return {base for base, kind in pairs if base.replace("_", "") == kind.lower().replace("_", "")}


def align(stored: Collection[str], present: Collection[str], bases: Set[str]) -> dict[str, str] | None:
    """The stored name of each present one, if both have the same names but for the numbers behind ``bases``, else None.

    Such names correspond in the order of their numbers.
    """
    if set(stored) == set(present):
        return {name: name for name in present}
    ours, theirs = _renumber(present, bases), _renumber(stored, bases)
    by_common = {common: name for name, common in theirs.items()}
    if set(by_common) != set(ours.values()) or len(by_common) != len(theirs) or len(set(ours.values())) != len(ours):
        return None
    return {name: by_common[common] for name, common in ours.items()}


def _renumber(paths: Collection[str], bases: Set[str]) -> dict[str, str]:
    """Paths whose numbers count within these paths."""
    found = {part for path in paths for part in path.split("/")[:-1] if _base(part) in bases}
    groups: dict[str, list[str]] = {}
    for part in sorted(found, key=_number):
        groups.setdefault(_base(part), []).append(part)
    parts = {part: f"{base}#{rank}" for base, group in groups.items() for rank, part in enumerate(group)}

    def renamed(path: str) -> str:
        *parents, last = path.split("/")
        return "/".join([*(parts.get(part, part) for part in parents), last])

    # An optimizer names the variables it keeps for each of the model's after that one's path, with underscores.
    owners = {path.split("/", 1)[1].replace("/", "_"): renamed(path) for path in paths if path.startswith("model/")}
    made = {}
    for path in paths:
        head, last = path.rsplit("/", 1) if "/" in path else ("", path)
        owner = max((o for o in _starts(last) if o in owners), key=len, default=None)
        common = renamed(path)
        if owner is not None and not path.startswith("model/"):
            common = f"{renamed(head + '/')}{owners[owner]}{last[len(owner) :]}"
        made[path] = common
    return made


def _starts(text: str) -> list[str]:
    """What ends before an underscore of ``text``."""
    return [text[: match.start()] for match in re.finditer("_", text)]


def _base(name: str) -> str:
    match = _NUMBERED.fullmatch(name)
    return match[1] if match else name


def _number(name: str) -> int:
    match = _NUMBERED.fullmatch(name)
    return int(match[2]) if match and match[2] else 0
