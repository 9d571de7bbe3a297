"""Checkpoints of training runs, saved and loaded by worker processes beside the training process.

Owns the public names and where each one lives; loads nothing until a name is used (PEP 562), because every worker
process imports this module on its way to ``s3dlio.engine``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compat import (
        PyCheckpointStore,
        finalize_distributed_checkpoint,
        init_logging,
        load_checkpoint,
        load_checkpoint_with_validation,
        load_checkpoint_with_validation_view,
        save_checkpoint,
        save_distributed_shard,
    )
    from .config import CheckpointConfig
    from .engine.errors import (
        AccessDeniedError,
        CancelledError,
        CheckpointNotFoundError,
        ConfigError,
        CorruptError,
        DeadlineError,
        DependencyError,
        ManifestError,
        MemoryLimitError,
        NotFoundError,
        PoolClosedError,
        PreconditionError,
        S3dlioError,
        StorageError,
        StorageFullError,
        UnsupportedError,
        WorkerDiedError,
    )
    from .handle import Handle
    from .info import CheckpointInfo
    from .store import CheckpointStore
    from .strategy import Strategy

__version__ = "0.1.0"

_HOMES = {
    ".compat": (
        "PyCheckpointStore",
        "finalize_distributed_checkpoint",
        "init_logging",
        "load_checkpoint",
        "load_checkpoint_with_validation",
        "load_checkpoint_with_validation_view",
        "save_checkpoint",
        "save_distributed_shard",
    ),
    ".config": ("CheckpointConfig",),
    ".engine.errors": (
        "AccessDeniedError",
        "CancelledError",
        "CheckpointNotFoundError",
        "ConfigError",
        "CorruptError",
        "DeadlineError",
        "DependencyError",
        "ManifestError",
        "MemoryLimitError",
        "NotFoundError",
        "PoolClosedError",
        "PreconditionError",
        "S3dlioError",
        "StorageError",
        "StorageFullError",
        "UnsupportedError",
        "WorkerDiedError",
    ),
    ".handle": ("Handle",),
    ".info": ("CheckpointInfo",),
    ".store": ("CheckpointStore",),
    ".strategy": ("Strategy",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AccessDeniedError",
    "CancelledError",
    "CheckpointConfig",
    "CheckpointInfo",
    "CheckpointNotFoundError",
    "CheckpointStore",
    "ConfigError",
    "CorruptError",
    "DeadlineError",
    "DependencyError",
    "Handle",
    "ManifestError",
    "MemoryLimitError",
    "NotFoundError",
    "PoolClosedError",
    "PreconditionError",
    "PyCheckpointStore",
    "S3dlioError",
    "StorageError",
    "StorageFullError",
    "Strategy",
    "UnsupportedError",
    "WorkerDiedError",
    "__version__",
    "finalize_distributed_checkpoint",
    "init_logging",
    "load_checkpoint",
    "load_checkpoint_with_validation",
    "load_checkpoint_with_validation_view",
    "save_checkpoint",
    "save_distributed_shard",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
