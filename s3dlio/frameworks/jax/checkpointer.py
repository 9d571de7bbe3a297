"""``Checkpointer``: pytrees saved and restored by step, with the verbs that users of Orbax know.

Owns the names alone: what they do is ``CheckpointStore``'s, ``restore``'s and ``plain``'s.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from ...engine.errors import DeadlineError
from ...handle import Handle
from ...info import CheckpointInfo
from ...saving import check_may_wait
from ...store import CheckpointStore
from .restoring import restore
from .trees import plain


class Checkpointer:
    """Checkpoints of pytrees at ``uri``; ``keep_last`` and ``options`` are those of ``CheckpointStore``, the ``store``.

    Several saves may be in flight. One that fails raises at its handle, or, where nobody asked it, at
    ``wait_until_finished`` or ``close``.
    """

    def __init__(self, uri: str, *, keep_last: int | None = None, **options: Any) -> None:
        self.store = CheckpointStore(uri, keep_last=keep_last, **options)

    def __repr__(self) -> str:
        return f"<Checkpointer of {self.store!r}>"

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.store.__exit__(kind, error, trace)

    def save(self, step: int, tree: Any, *, user_meta: Any = None) -> CheckpointInfo:
        """Save a pytree and wait until it is committed. Arguments and errors as in ``save_async``."""
        return self.store.save(step, plain(tree), framework="jax", user_meta=user_meta)

    def save_async(self, step: int, tree: Any, *, user_meta: Any = None) -> Handle:
        """Copy a pytree to host memory and return; ``handle.result()`` waits for the commit.

        The arrays may be donated as soon as this returns. ``tree``: any pytree whose leaves are arrays of JAX or NumPy,
        numbers, strings, bytes; its nodes are stored as dicts, lists and tuples (``plain``). ``user_meta``: JSON, such
        as metrics. Raises ``UnsupportedError`` with the path of a leaf that cannot be stored (a donated array, a
        tracer) before anything is written.
        """
        return self.store.save_async(step, plain(tree), framework="jax", user_meta=user_meta)

    def wait_until_finished(self, timeout: float | None = None) -> None:
        """Wait until every save has ended; raises the first failure that nobody has asked for.

        ``timeout``: seconds in all, None for ever; then ``DeadlineError``, and the saves go on.
        """
        check_may_wait()
        end = None if timeout is None else time.monotonic() + timeout
        saver = self.store._saver
        for save in saver.pending():
            if not save.wait(None if end is None else max(0.0, end - time.monotonic())):
                raise DeadlineError(f"{self.store.uri}: {save.name} is not committed after {timeout} s")
        saver.raise_unasked()

    def restore(self, step: int | None = None, target: Any = None) -> Any:
        """The newest checkpoint, or ``step``'s, onto the devices of ``target``; see ``restore`` of this package."""
        return restore(self.store, target, step)

    def latest_step(self) -> int | None:
        """Step of the checkpoint that was saved last, which need not be the greatest; None if there is none."""
        info = self.store.latest()
        return None if info is None else info.step

    def all_steps(self) -> list[int]:
        """Steps of the committed checkpoints, each once, in order of saving; the last one is ``latest_step``."""
        steps = [info.step for info in self.store.list() if info.is_complete]
        return list(dict.fromkeys(reversed(steps)))[::-1]

    def close(self, timeout: float | None = None) -> None:
        """Wait up to ``timeout`` seconds for saves in flight, then leave the workers; as ``CheckpointStore.close``."""
        self.store.close(timeout)
