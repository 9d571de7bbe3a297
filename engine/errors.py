"""Every error this package raises on purpose, under one root.

Owns the names and what they mean for a caller; never raises anything itself. Everybody imports this module, and it
imports nothing of the package. ``S3dlioError`` is a ``RuntimeError`` so that code written for the published package,
which raises that, keeps working; a class also carries the built-in its meaning matches (``ValueError``,
``FileNotFoundError``, ``TimeoutError`` ...).
"""

from __future__ import annotations


class S3dlioError(RuntimeError):
    """Root of all errors of this package."""


class ConfigError(S3dlioError, ValueError):
    """An argument, URI or option is wrong; nothing was touched."""


class UnsupportedError(S3dlioError, TypeError):
    """A payload or a leaf of a state cannot be stored; the message holds its path in the tree."""


class MemoryLimitError(S3dlioError, MemoryError):
    """The memory number, or what the machine has left, cannot hold one chunk."""


class PoolClosedError(S3dlioError):
    """The pool was closed, or belongs to the process this one was forked from."""


class CancelledError(S3dlioError):
    """The job was cancelled by its owner; nothing of it was committed."""


class DeadlineError(S3dlioError, TimeoutError):
    """A wait, or a task without progress, ran past its deadline."""


class WorkerDiedError(S3dlioError):
    """Workers died more often than the pool replaces them."""


class CorruptError(S3dlioError):
    """Stored bytes are not the bytes that were saved (size, checksum or format is wrong)."""


class ManifestError(CorruptError, ValueError):
    """A manifest, index, shard record or pointer is malformed, hostile or contradicts itself."""


class StorageError(S3dlioError):
    """A store refused or failed an operation.

    ``transient`` tells truthfully whether the same call may succeed later.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class ThrottledError(StorageError):
    """The store asks for fewer requests (503 SlowDown, 429): every request of the pool waits."""


class BrokenReadError(StorageError):
    """A download ended early; the first ``reached`` bytes of what was asked for are there, of the version ``etag``."""

    def __init__(self, message: str, *, transient: bool = True, reached: int = 0, etag: str = "") -> None:
        super().__init__(message, transient=transient)
        self.reached = reached
        self.etag = etag


class NotFoundError(StorageError, FileNotFoundError):
    """The object, folder, bucket or container does not exist."""


class CheckpointNotFoundError(NotFoundError):
    """No committed checkpoint answers to this step."""


class AccessDeniedError(StorageError, PermissionError):
    """The store or the operating system forbids the operation."""


class PreconditionError(StorageError):
    """``if_absent`` or ``if_match`` did not hold: somebody else wrote the key."""


class ExistsError(PreconditionError, FileExistsError):
    """What is stored in a place stays: remove it before something else may have its name."""


class StorageFullError(StorageError):
    """No space, quota or file-size limit left."""


class DependencyError(S3dlioError, ImportError):
    """An optional package is missing; the message names the extra that installs it."""
