"""What a user chooses when opening a store: where it is, and a handful of options.

Pure: parses and checks, opens nothing. ``store`` and ``compat`` build on it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from .engine.backends import SCHEMES, azure_options, s3_options
from .engine.contract import Location
from .engine.errors import ConfigError
from .engine.plan import MIB
from .strategy import Strategy

COMPRESSIONS = ("none", "zstd", "zstd-grouped", "auto")
LEVELS = range(1, 23)
DEFAULT_THRESHOLD = 100 * MIB
"""A shard up to this size goes to an object store in one request."""


def parse_uri(uri: str, options: Mapping[str, object] | None = None) -> Location:
    """The location that a store's URI and its options name; contacts nothing.

    ``file:///dir`` and ``direct:///dir`` take no options; those of ``s3://bucket/prefix`` stand in
    ``engine.backends.s3_options``, those of ``az://account/container/prefix`` in ``engine.backends.azure_options``.
    What the SDKs read from the environment (``AWS_…``, ``AZURE_…``) is taken now. Raises ``ConfigError``.
    """
    if not isinstance(uri, str):
        raise ConfigError(f"a store's URI must be a string such as file:///checkpoints, not {type(uri).__name__}")
    scheme, separator, rest = uri.partition("://")
    if not separator:
        raise ConfigError(f"{uri!r} is no URI: write file:///folder for a folder of this machine")
    if scheme not in SCHEMES or scheme == "memory":  # that one is each process's own: for tests of a single process
        known = ", ".join(f"{name}://" for name in sorted(SCHEMES) if name != "memory")
        raise ConfigError(f"{uri!r}: unknown scheme {scheme!r}; known are {known}")
    if "\0" in rest:
        raise ConfigError(f"{uri!r}: a name cannot hold a NUL")
    if scheme == "s3":
        return s3_options.parse(rest, options or {}, os.environ)
    if scheme == "az":
        return azure_options.parse(rest, options or {}, os.environ)
    if not rest.startswith("/"):
        raise ConfigError(f"{uri!r}: the folder must be absolute, with three slashes: {scheme}:///folder")
    if options:
        raise ConfigError(f"{scheme}:// takes no options, and was given {', '.join(sorted(options))}")
    return Location(scheme, str(PurePosixPath(rest)))


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """Options of a store; every ``with_…`` returns a changed copy.

    ``strategy``: how shards spread over key prefixes. ``compression``: ``None`` or ``"none"``, ``"zstd"``,
    ``"zstd-grouped"`` (bytes grouped by element width first: smaller and faster on tensors), ``"auto"`` (grouped while
    the storage is the bottleneck; never on ``direct://``). ``compression_level``: 1 to 22, for ``"zstd"``.
    ``multipart_threshold``: bytes up to which an object store gets one request. ``memory``: bytes of the staging arena
    (default: half of what is left, divided by the ranks on the host). ``workers``: worker processes. ``chunk_size``:
    bytes of a chunk, a multiple of 1 MiB. ``connections``: requests that each worker has in flight to an object store.
    ``keep_last``: newest checkpoints that stay after a commit. ``rank_timeout``: seconds that the ranks of a job wait
    for each other's words. ``options``: what the object store needs to know
    (``parse_uri``). Stores with the same ``memory``, ``workers``, ``chunk_size`` and ``connections`` share one pool.
    """

    strategy: Strategy = Strategy.FLAT
    compression: str | None = None
    compression_level: int = 3
    multipart_threshold: int = DEFAULT_THRESHOLD
    memory: int | None = None
    workers: int | None = None
    chunk_size: int = 16 * MIB
    connections: int = 8
    keep_last: int | None = None
    rank_timeout: float = 600.0
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.strategy, Strategy):
            object.__setattr__(self, "strategy", Strategy.parse(self.strategy))
        if self.compression is not None and self.compression not in COMPRESSIONS:
            raise ConfigError(f"compression {self.compression!r} is unknown: it is one of {', '.join(COMPRESSIONS)}")
        if type(self.compression_level) is not int or self.compression_level not in LEVELS:
            raise ConfigError(f"compression_level must be 1 to 22, not {self.compression_level!r}")
        _check_count("multipart_threshold", self.multipart_threshold, least=0)
        _check_count("keep_last", self.keep_last, least=1)
        if type(self.rank_timeout) not in (int, float) or not 0 < self.rank_timeout < float("inf"):
            raise ConfigError(f"rank_timeout must be seconds above 0, not {self.rank_timeout!r}")

    @classmethod
    def of(cls, **options: Any) -> CheckpointConfig:
        """The options that are given: ``None`` stands for the default."""
        return cls(**{name: value for name, value in options.items() if value is not None})

    @property
    def codec(self) -> str:
        return self.compression or "none"

    def with_strategy(self, strategy: Strategy | str) -> CheckpointConfig:
        """Spread shards over prefixes this way."""
        return replace(self, strategy=Strategy.parse(strategy) if isinstance(strategy, str) else strategy)

    def with_multipart_threshold(self, threshold: int) -> CheckpointConfig:
        """Send shards up to ``threshold`` bytes in one request."""
        return replace(self, multipart_threshold=threshold)

    def with_compression(self, compression: str | None, level: int | None = None) -> CheckpointConfig:
        """Compress this way."""
        return replace(
            self, compression=compression, compression_level=self.compression_level if level is None else level
        )


def _check_count(name: str, value: object, *, least: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise ConfigError(f"{name} must be a number of {least} or more, not {value!r}")
