"""The life of a worker process: receive tasks, run them in lanes, send results, leave when the parent is gone.

Owns the worker's end of the socketpair, its threads and its logging. Started by ``spawn``; imports no framework and
nothing of the user's. End-of-file on the channel is the parent's death or its wish: either way uploads begun here that
nobody finished are aborted, and the process ends, whatever else its lanes are doing.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import threading
import traceback

from .attached import Memories
from .channel import Channel, ChannelClosed
from .messages import (
    Attach,
    Configure,
    Detach,
    Forget,
    Hello,
    LogMessage,
    ResultMessage,
    TaskMessage,
    failure_of,
)
from .tasks import TaskRunner

_REST_AFTER = 1.0
"""Seconds without a task after which a lane gives its buffers back."""
_ABORT_TIMEOUT = 10.0
"""Seconds for all aborts: a store that hangs would otherwise keep the worker, and with it the arena's memory."""


def main(fd: int, lanes: int) -> None:
    """Serve the parent on descriptor ``fd`` with up to ``lanes`` tasks at once; never returns."""
    # Signals for the group (Ctrl-C, a scheduler's SIGTERM) are the parent's business: it may want its last save kept.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=fd))
    log = _ChannelHandler(channel)
    logging.getLogger().addHandler(log)
    worker = _Worker(channel, lanes)
    status = 1
    try:
        worker.serve()
    except ChannelClosed:
        status = 0
    except BaseException:  # noqa: BLE001 - a bug of ours, told on stderr; the parent does the work again elsewhere
        traceback.print_exc()
    finally:
        if status == 0:  # else the parent lives, and has the uploads go on elsewhere
            timer = threading.Timer(_ABORT_TIMEOUT, os._exit, (status,))
            timer.daemon = True
            timer.start()
            worker.runner.abort_opened()
        os._exit(status)  # lanes may be deep in a write that nobody waits for any more


class _Worker:
    """The receiving thread's state."""

    def __init__(self, channel: Channel, lanes: int) -> None:
        self._channel = channel
        self._lanes = lanes
        self._greeted = False
        self._idle = 0
        self._threads = 0
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[TaskMessage] = queue.SimpleQueue()
        self._memories = Memories()
        self.runner = TaskRunner(self._memories)

    def serve(self) -> None:
        """Receive until the parent's end is closed (``ChannelClosed``)."""
        while True:
            for message, fds in self._channel.receive():
                match message:
                    case TaskMessage():
                        self._enqueue(message)
                    case Attach():
                        self._memories.attach(message.memory, fds[0], message.size)
                    case Detach():
                        self._memories.detach(message.memory)
                    case Forget():
                        self.runner.opened.pop((message.key, message.upload), None)
                    case Configure():
                        logging.getLogger().setLevel(message.level)
                        self._greet()

    def _greet(self) -> None:
        """Tell the parent, once, that this worker started well: its first memories are attached."""
        if not self._greeted:
            self._greeted = True
            self._channel.send(Hello(os.getpid()))

    def _enqueue(self, message: TaskMessage) -> None:
        with self._lock:
            start = self._idle == 0 and self._threads < self._lanes
            if start:
                self._threads += 1
            else:
                self._idle -= 1
        self._queue.put(message)
        if start:
            threading.Thread(target=self._lane, name=f"lane-{self._threads}", daemon=True).start()

    def _next(self) -> TaskMessage:
        try:
            return self._queue.get(timeout=_REST_AFTER)
        except queue.Empty:
            self.runner.rest()
            return self._queue.get()

    def _lane(self) -> None:
        while True:
            message = self._next()
            value: object
            try:
                value = self.runner.run(message.task)
            except Exception as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
                value = failure_of(error, traceback.format_exc())
            with self._lock:
                self._idle += 1
            try:
                self._channel.send(ResultMessage(message.id, value))
            except ChannelClosed:
                return  # the receiving thread sees the same end of file and ends the process


class _ChannelHandler(logging.Handler):
    """Sends log records to the parent, which logs them under the same names."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            once = getattr(record, "once", False)
            self._channel.send(LogMessage(record.name, record.levelno, text, record.created, once))
        except ChannelClosed:
            return
