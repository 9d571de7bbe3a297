"""Work that a Ctrl-C must not cut in two.

Owns one rule: Python raises ``KeyboardInterrupt`` between any two steps of the main thread, so what must not lose a
slot there runs in another thread while the main thread waits. ``job`` and ``fetch`` use it; a thread costs 60 µs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def run_uninterrupted(work: Callable[[], T], interrupt: Callable[[BaseException], None]) -> T:
    """Do ``work``, return what it returns and raise what it raises; in the main thread, do it in another.

    If the main thread is interrupted meanwhile, ``interrupt`` is told, which must make ``work`` return soon; the
    interruption is raised once it has.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            errors.append(error)

    thread = threading.Thread(target=body, name="s3dlio-copy", daemon=True)
    try:
        thread.start()
        thread.join()
    except BaseException as error:
        interrupt(error)
        if thread.ident is not None:
            thread.join()
        raise
    if errors:
        raise errors[0]
    return results[0]
