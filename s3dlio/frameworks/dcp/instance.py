"""What a DCP writer and a DCP reader share: which store they mean now, and what one run knows between DCP's calls.

DCP uses an instance for one checkpoint after the other and pickles it for other processes, so it holds options and a
place; what belongs to one run is each thread's own. ``writer`` and ``reader`` build on it.
"""

from __future__ import annotations

import os
import threading
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from ...config import CheckpointConfig
from ...engine.errors import ConfigError
from .places import CheckpointIdLike, Place, is_place, place_of

RunT = TypeVar("RunT")


class Instance(Generic[RunT]):
    """``uri``: the store, or the folder that checkpoints have stores in; ``step``: of what is saved or loaded.

    ``ConfigError`` for what is no URI or no option.
    """

    def __init__(self, uri: str | os.PathLike[str], config: CheckpointConfig, step: int | None) -> None:
        self.config = config
        self.uri = _base(uri)
        self.step = step
        self._place = self._find(None)
        self._here = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_here"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._here = threading.local()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether ``checkpoint_id`` by itself names a store."""
        return is_place(checkpoint_id)

    @property
    def checkpoint_id(self) -> str:
        """The URI of the place that is saved to or loaded from."""
        return self._place_of_run().uri

    def reset(self, checkpoint_id: CheckpointIdLike = None) -> None:
        """A new run begins: at ``checkpoint_id``, or at the same place as before."""
        if checkpoint_id is not None:
            self._place = self._find(checkpoint_id)
        self._run = self._new_run(self._place)

    @abstractmethod
    def _new_run(self, place: Place) -> RunT:
        """What a run knows when it begins."""

    @abstractmethod
    def _place_of_run(self) -> Place:
        """Where all ranks of the run save to or load from."""

    @property
    def _run(self) -> RunT:
        """This thread's run; it has begun if nothing else was said."""
        run: RunT | None = getattr(self._here, "run", None)
        if run is None:
            run = self._here.run = self._new_run(self._place)
        return run

    @_run.setter
    def _run(self, run: RunT) -> None:
        self._here.run = run

    def _find(self, checkpoint_id: CheckpointIdLike) -> Place:
        return place_of(self.uri, checkpoint_id, self.config.options, self.step)

    def _options_of(self, uri: str) -> Mapping[str, Any] | None:
        """The store's options where they are for the scheme of ``uri`` too."""
        return self.config.options if uri.partition("://")[0] == self.uri.partition("://")[0] else None


def _base(uri: str | os.PathLike[str]) -> str:
    text = os.fspath(uri)
    if not isinstance(text, str):
        raise ConfigError(f"{uri!r} is no URI")
    return f"file://{text}" if text.startswith("/") else text
