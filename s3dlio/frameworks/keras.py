"""Keras 3: a callback that saves while ``fit`` trains, and goes on from the newest checkpoint.

Owns when to save, what is counted, and the errors of saves in the background; ``keras_state`` knows the variables, the
store all else. Works on every backend that trains (TensorFlow, JAX, torch). Called by users.

    checkpoint = S3dlioCheckpoint("s3://bucket/run1", keep_last=3)
    model.fit(x, y, epochs=10, initial_epoch=checkpoint.initial_epoch, callbacks=[checkpoint])
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ..engine.errors import ConfigError
from ..handle import Handle
from ..info import CheckpointInfo
from ..store import CheckpointStore
from .keras_state import keras, restore, state_of

__all__ = ["S3dlioCheckpoint", "restore", "state_of"]

_log = logging.getLogger("s3dlio")


@dataclass(frozen=True, slots=True)
class _Place:
    """How far training is: batches in all, epochs that are complete, batches of the present one."""

    step: int = 0
    epoch: int = 0
    batch: int = 0


class S3dlioCheckpoint(keras.callbacks.Callback):
    """Saves a model, its optimizer and the place in the training, in the background.

    ``store``: an open store, which the caller closes, or a URI, whose store is open from the first use to the end of
    ``fit``. ``save_freq``: ``"epoch"``, or every so many batches. What was trained since the last save is saved at the
    end of training too. ``keep_last``: for a URI, as in ``CheckpointStore``. ``restore``: what the first ``fit`` begins
    from: ``"latest"`` (where there is none, from the start), a step, which must exist, or ``None``.

    A checkpoint's step counts batches over all runs, its epoch the complete epochs. ``fit`` cannot begin in the middle
    of an epoch: one saved there is trained from its first batch again. A save that failed raises at the next batch, or
    with ``save_freq="epoch"`` at the end of the next epoch, and at the latest at the end of training, which waits for
    all. A ``fit`` that raises has no such end: ``close`` then.

    Each process saves a checkpoint of its own: where several train one model alike, give the callback to one of them.
    """

    def __init__(
        self,
        store: CheckpointStore | str,
        *,
        save_freq: int | str = "epoch",
        keep_last: int | None = None,
        restore: int | str | None = "latest",
    ) -> None:
        super().__init__()
        if save_freq != "epoch" and (type(save_freq) is not int or save_freq < 1):
            raise ConfigError(f"save_freq must be 'epoch' or a number of batches, not {save_freq!r}")
        if restore not in (None, "latest") and type(restore) is not int:
            raise ConfigError(f"restore must be 'latest', a step or None, not {restore!r}")
        if keep_last is not None and not isinstance(store, str):
            raise ConfigError("keep_last belongs to the store: pass it to CheckpointStore")
        self.async_safe = save_freq == "epoch"  # batches are only counted then, and Keras need not wait for each
        self._every = None if save_freq == "epoch" else int(save_freq)
        self._given = store
        self._keep_last = keep_last
        self._own: CheckpointStore | None = None
        self._from = restore
        self._start: CheckpointInfo | None = None
        self._looked = False
        self._restored: _Place | None = None
        self._lock = threading.Lock()
        self._place = self._saved = _Place()
        self._handles: list[Handle] = []

    @property
    def initial_epoch(self) -> int:
        """Epochs that are complete in the checkpoint that ``fit`` will begin from; asks the store."""
        start = self._find_start()
        return self._place.epoch if start is None else start.epoch

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Restore, the first time."""
        self._raise_failed()
        start = self._find_start()
        self._from = self._start = None
        if start is None:
            return
        state = self._store().load(id=start.id, coordinator=None)
        if not isinstance(state, dict) or not {"model", "train"} <= state.keys():
            raise ConfigError(f"{start.id} was not saved by this callback: load it with restore(model, store.load())")
        restore(self.model, state)
        self._place = self._saved = self._restored = _Place(**state["train"])

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Where ``fit`` is now."""
        restored, self._restored = self._restored, None
        if restored is not None and restored.epoch != epoch:
            _log.warning(
                "the restored checkpoint has %d complete epochs, and fit begins with epoch %d: "
                "pass initial_epoch=checkpoint.initial_epoch",
                restored.epoch, epoch,
            )  # fmt: skip
        self._place = _Place(self._place.step, epoch)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count, and save if it is time."""
        steps = (self.params or {}).get("steps") or batch + 1
        with self._lock:  # Keras may call from several threads, in any order
            before = self._place
            done = max(before.batch, min(batch + 1, steps))  # with steps_per_execution it may name one beyond the end
            step = before.step + done - before.batch
            self._place = _Place(step, before.epoch, done)
        if self._every is None:
            return
        self._raise_failed()
        if step // self._every > before.step // self._every:
            if done == (self.params or {}).get("steps"):  # the epoch is complete
                self._place = _Place(step, before.epoch + 1)
            self._save(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save if it is time."""
        self._place = _Place(self._place.step, epoch + 1)
        self._raise_failed()
        if self._every is None:
            self._save(logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Save what is not saved, wait for all saves, raise what failed."""
        with self._ending():
            if self._place != self._saved:
                self._save(logs)

    def close(self) -> None:
        """Wait for all saves, close the store of a URI, and raise what failed; ``fit`` does it at its end."""
        with self._ending():
            pass

    @contextmanager
    def _ending(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.push(self._leave)
            yield
            while self._handles:
                self._handles.pop(0).result()

    def _leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        own, self._own = self._own, None
        if own is not None:
            own.__exit__(kind, error, trace)

    def _save(self, logs: dict[str, Any] | None) -> None:
        place = self._place
        train = {"step": place.step, "epoch": place.epoch, "batch": place.batch}
        handle = self._store().save_async(
            place.step,
            {**state_of(self.model), "train": train},
            epoch=place.epoch,
            framework="keras",
            user_meta={"batch": place.batch, "logs": _finite(logs or {})},
            coordinator=None,
        )
        self._handles.append(handle)
        self._saved = place

    def _raise_failed(self) -> None:
        """Raise the error of a save that has failed, once; forget those that were committed."""
        for handle in [handle for handle in self._handles if handle.done()]:
            self._handles.remove(handle)
            handle.result()

    def _find_start(self) -> CheckpointInfo | None:
        """What to begin from; looked up once, so that the epoch asked for and the state restored are of one save."""
        if self._from is not None and not self._looked:
            self._looked = True
            store = self._store()
            self._start = store.latest() if self._from == "latest" else store.info(int(self._from))
        return self._start

    def _store(self) -> CheckpointStore:
        if isinstance(self._given, CheckpointStore):
            return self._given
        if self._own is None:
            self._own = CheckpointStore(self._given, keep_last=self._keep_last)
        return self._own


def _finite(logs: dict[str, Any]) -> dict[str, float | None]:
    """Metrics as JSON has them."""
    numbers = {name: float(value) for name, value in logs.items()}
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
