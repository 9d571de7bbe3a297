"""Checkpoints of training runs, saved and loaded by worker processes beside the training process.

Owns the public names and where each one lives; loads nothing until a name is used (PEP 562), because every worker
process imports this module on its way to ``s3dlio.engine``.
"""

from __future__ import annotations

from collections.abc import Iterable
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
    from .coordination.boards import StoreCoordinator
    from .engine.errors import (
        AccessDeniedError,
        BrokenReadError,
        CancelledError,
        CheckpointNotFoundError,
        ConfigError,
        CorruptError,
        DeadlineError,
        DependencyError,
        ExistsError,
        ManifestError,
        MemoryLimitError,
        NotFoundError,
        PoolClosedError,
        PreconditionError,
        S3dlioError,
        StorageError,
        StorageFullError,
        ThrottledError,
        UnsupportedError,
        WorkerDiedError,
    )
    from .handle import Handle
    from .info import CheckpointInfo
    from .multipart_writer import MultipartUploadWriter
    from .object_writers import (
        PyWriterOptions,
        create_azure_writer,
        create_direct_filesystem_writer,
        create_filesystem_writer,
        create_s3_writer,
    )
    from .objects import delete, exists, get, get_range, list, mkdir, put_bytes, stat
    from .store import CheckpointStore
    from .strategy import Strategy
    from .transfers import download, upload

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
    ".coordination.boards": ("StoreCoordinator",),
    ".engine.errors": (
        "AccessDeniedError",
        "BrokenReadError",
        "CancelledError",
        "CheckpointNotFoundError",
        "ConfigError",
        "CorruptError",
        "DeadlineError",
        "DependencyError",
        "ExistsError",
        "ManifestError",
        "MemoryLimitError",
        "NotFoundError",
        "PoolClosedError",
        "PreconditionError",
        "S3dlioError",
        "StorageError",
        "StorageFullError",
        "ThrottledError",
        "UnsupportedError",
        "WorkerDiedError",
    ),
    ".handle": ("Handle",),
    ".info": ("CheckpointInfo",),
    ".multipart_writer": ("MultipartUploadWriter",),
    ".object_writers": (
        "PyWriterOptions",
        "create_azure_writer",
        "create_direct_filesystem_writer",
        "create_filesystem_writer",
        "create_s3_writer",
    ),
    ".objects": ("delete", "exists", "get", "get_range", "list", "mkdir", "put_bytes", "stat"),
    ".store": ("CheckpointStore",),
    ".strategy": ("Strategy",),
    ".transfers": ("download", "upload"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AccessDeniedError",
    "BrokenReadError",
    "CancelledError",
    "CheckpointConfig",
    "CheckpointInfo",
    "CheckpointNotFoundError",
    "CheckpointStore",
    "ConfigError",
    "CorruptError",
    "DeadlineError",
    "DependencyError",
    "ExistsError",
    "Handle",
    "ManifestError",
    "MemoryLimitError",
    "MultipartUploadWriter",
    "NotFoundError",
    "PoolClosedError",
    "PreconditionError",
    "PyCheckpointStore",
    "PyWriterOptions",
    "S3dlioError",
    "StorageError",
    "StorageFullError",
    "StoreCoordinator",
    "Strategy",
    "ThrottledError",
    "UnsupportedError",
    "WorkerDiedError",
    "__version__",
    "create_azure_writer",
    "create_direct_filesystem_writer",
    "create_filesystem_writer",
    "create_s3_writer",
    "delete",
    "download",
    "exists",
    "finalize_distributed_checkpoint",
    "get",
    "get_range",
    "init_logging",
    "list",
    "load_checkpoint",
    "load_checkpoint_with_validation",
    "load_checkpoint_with_validation_view",
    "mkdir",
    "put_bytes",
    "save_checkpoint",
    "save_distributed_shard",
    "stat",
    "upload",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> Iterable[str]:
    return sorted(set(globals()) | set(__all__))
