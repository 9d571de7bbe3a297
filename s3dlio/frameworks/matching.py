"""Does a loaded state fit what is there? The comparison by name, and the one error with everything that does not.

Pure; knows no framework. Called by the frameworks' ``restore`` before the first value is assigned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..engine.errors import ConfigError

_MOST_LINES = 1000


@dataclass(frozen=True, slots=True)
class Kind:
    """What an array is: its dtype's name and its shape."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def check_match(stored: Mapping[str, Kind], present: Mapping[str, Kind], where: str, hint: str = "") -> None:
    """``ConfigError`` unless both hold the same names, each of the same kind.

    ``where`` says what ``present`` is; ``hint`` is added where names are missing or left over.
    """
    lines = [f"{name}: not in the checkpoint" for name in present if name not in stored]
    lines += [f"{name}: in the checkpoint only" for name in stored if name not in present]
    hint = f"\n{hint}" if lines and hint else ""
    lines += [
        f"{name}: stored {stored[name]}, here {kind}"
        for name, kind in present.items()
        if name in stored and stored[name] != kind
    ]
    if lines:
        shown = "\n  ".join(lines[:_MOST_LINES])
        more = f"\n  ... and {len(lines) - _MOST_LINES} more" if len(lines) > _MOST_LINES else ""
        raise ConfigError(f"the checkpoint does not fit {where}; nothing was restored:\n  {shown}{more}{hint}")
