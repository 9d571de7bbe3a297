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
    # Not join(): up to Python 3.12 one that was interrupted takes the thread for ended. Nor an Event, whose wait is
    # Python code that an interrupt can cut in two.
    ended = threading.Lock()
    ended.acquire()

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            errors.append(error)
        finally:
            ended.release()

    thread = threading.Thread(target=body, name="s3dlio-copy", daemon=True)
    try:
        thread.start()
        ended.acquire()
    except BaseException as error:
        interrupt(error)
        if thread.ident is not None and not results and not errors:
            ended.acquire()
        raise
    if errors:
        raise errors[0]
    return results[0]
