"""torch.distributed.checkpoint on s3dlio: ``S3dlioStorageWriter`` and ``S3dlioStorageReader``.

Owns the public names. A checkpoint written here is an ordinary one of a store (``s3dlio ls``, ``verify``, ``copy`` and
``delete`` work on it): one shard for each rank, and as its last shard the metadata of DCP as JSON. Nothing is pickled
unless ``pickle=True`` asks for it. FORMAT.md describes the metadata.
"""

from .prefixes import (
    BinaryPrefixStrategy,
    DefaultPrefixStrategy,
    HexPrefixStrategy,
    NumericPrefixStrategy,
    PrefixStrategy,
    RoundRobinPrefixStrategy,
    S3PrefixStrategyBase,
)
from .reader import S3dlioStorageReader
from .shared import shutdown
from .writer import S3dlioStorageWriter

__all__ = [
    "BinaryPrefixStrategy",
    "DefaultPrefixStrategy",
    "HexPrefixStrategy",
    "NumericPrefixStrategy",
    "PrefixStrategy",
    "RoundRobinPrefixStrategy",
    "S3PrefixStrategyBase",
    "S3dlioStorageReader",
    "S3dlioStorageWriter",
    "shutdown",
]
