"""Prefix strategies of torch DCP, under the names and with the meaning that s3torchconnector's users know.

Pure. A strategy gives each rank a prefix, so that the requests of many ranks spread over the key space by which an
object store splits its load. Digits are reversed, lowest first: neighbouring ranks differ in the first one. The part
before the last slash of what a strategy returns becomes folders below ``shards/by/``; the rest (``__{rank}_``) names
files there and has no use here, where a shard's name holds the rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from ...engine.errors import ConfigError


class PrefixStrategy(ABC):
    """Gives the prefix of a rank; subclass it for one of your own."""

    def __call__(self, rank: int) -> str:
        return self.generate_prefix(rank)

    @abstractmethod
    def generate_prefix(self, rank: int) -> str:
        """The prefix of ``rank``: folders, a slash, the start of a file name."""


S3PrefixStrategyBase = PrefixStrategy
"""The name of the base class in s3torchconnector."""


class DefaultPrefixStrategy(PrefixStrategy):
    """No folders: all ranks in one."""

    def generate_prefix(self, rank: int) -> str:
        return f"__{rank}_"


class RoundRobinPrefixStrategy(PrefixStrategy):
    """Ranks take the prefixes of ``user_prefixes`` in turn; ``epoch_num`` adds a folder ``epoch_{n}``."""

    def __init__(self, user_prefixes: Sequence[str], epoch_num: int | None = None) -> None:
        if isinstance(user_prefixes, str) or not user_prefixes:
            raise ConfigError("user_prefixes must be a list of at least one prefix")
        self.user_prefixes = list(user_prefixes)
        self.epoch_num = _check_epoch(epoch_num)

    def generate_prefix(self, rank: int) -> str:
        return _join(self.user_prefixes[rank % len(self.user_prefixes)], self.epoch_num, rank)


class NumericPrefixStrategy(PrefixStrategy):
    """Ranks take numbers of ``base`` in turn, written lowest digit first.

    ``prefix_count``: how many different ones (default: the world size, asked when the first prefix is needed);
    ``min_prefix_length``: digits, filled up with zeros behind; ``epoch_num`` adds a folder ``epoch_{n}``.
    """

    def __init__(
        self, base: int, epoch_num: int | None = None, min_prefix_length: int = 10, prefix_count: int | None = None
    ) -> None:
        if base not in range(2, 17):
            raise ConfigError(f"base must be 2 to 16, not {base!r}")
        if type(min_prefix_length) is not int or not 1 <= min_prefix_length <= 64:
            raise ConfigError(f"min_prefix_length must be 1 to 64, not {min_prefix_length!r}")
        if prefix_count is not None and (type(prefix_count) is not int or prefix_count < 1):
            raise ConfigError(f"prefix_count must be a number of 1 or more, not {prefix_count!r}")
        self.base = base
        self.epoch_num = _check_epoch(epoch_num)
        self.min_prefix_length = min_prefix_length
        self.prefix_count = prefix_count

    def generate_prefix(self, rank: int) -> str:
        count = self.prefix_count or _world_size()
        length = max(self.min_prefix_length, len(self._digits(count - 1)))
        return _join(self._digits(rank % count).ljust(length, "0"), self.epoch_num, rank)

    def _digits(self, number: int) -> str:
        """Lowest first."""
        digits = ""
        while number or not digits:
            number, digit = divmod(number, self.base)
            digits += "0123456789abcdef"[digit]
        return digits


class BinaryPrefixStrategy(NumericPrefixStrategy):
    """Numbers of base 2."""

    def __init__(
        self, epoch_num: int | None = None, min_prefix_length: int = 10, prefix_count: int | None = None
    ) -> None:
        super().__init__(2, epoch_num, min_prefix_length, prefix_count)


class HexPrefixStrategy(NumericPrefixStrategy):
    """Numbers of base 16."""

    def __init__(
        self, epoch_num: int | None = None, min_prefix_length: int = 10, prefix_count: int | None = None
    ) -> None:
        super().__init__(16, epoch_num, min_prefix_length, prefix_count)


def folders(strategy: PrefixStrategy | None, rank: int) -> str:
    """The folders that ``strategy`` gives a rank, without slashes around; empty for none."""
    return "" if strategy is None else strategy(rank).rpartition("/")[0].strip("/")


def _join(prefix: str, epoch: int | None, rank: int) -> str:
    return f"{prefix}/{'' if epoch is None else f'epoch_{epoch}/'}__{rank}_"


def _check_epoch(epoch: int | None) -> int | None:
    if epoch is not None and type(epoch) is not int:
        raise ConfigError(f"epoch_num must be an integer, not {epoch!r}")
    return epoch


def _world_size() -> int:
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
