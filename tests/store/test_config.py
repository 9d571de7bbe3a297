from __future__ import annotations

from typing import Any

import pytest

from s3dlio.config import CheckpointConfig, parse_uri
from s3dlio.engine.contract import Location
from s3dlio.engine.errors import ConfigError
from s3dlio.strategy import Strategy


@pytest.mark.parametrize(
    ("uri", "scheme", "root"),
    [
        ("file:///data/run", "file", "/data/run"),
        ("file:///data/run/", "file", "/data/run"),
        ("file:///data//run/./x", "file", "/data/run/x"),
        ("file:///", "file", "/"),
        ("file:///with space/ünï", "file", "/with space/ünï"),
        ("direct:///data", "direct", "/data"),
    ],
)
def test_a_uri_is_a_location(uri: str, scheme: str, root: str) -> None:
    assert parse_uri(uri) == Location(scheme, root)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (None, "a store's URI must be a string such as file:///checkpoints, not NoneType"),
        (b"file:///x", "a store's URI must be a string such as file:///checkpoints, not bytes"),
        ("", "'' is no URI: write file:///folder for a folder of this machine"),
        ("/data/run", "'/data/run' is no URI: write file:///folder for a folder of this machine"),
        ("ftp://host/x", "'ftp://host/x': unknown scheme 'ftp'; known are "),
        ("FILE:///x", "'FILE:///x': unknown scheme 'FILE'; known are "),
        ("file://data", "'file://data': the folder must be absolute, with three slashes: file:///folder"),
        ("direct://./x", "'direct://./x': the folder must be absolute, with three slashes: direct:///folder"),
        ("file:///a\0b", "'file:///a\\x00b': a name cannot hold a NUL"),
        ("memory://name", "'memory://name': unknown scheme 'memory'; known are az://, direct://, file://, s3://"),
    ],
)
def test_what_is_no_uri_is_refused_with_the_fix(uri: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_uri(uri)
    assert str(caught.value).startswith(message)


def test_the_known_schemes_are_listed() -> None:
    with pytest.raises(ConfigError, match=r"known are .*direct://, file://"):
        parse_uri("gopher://x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compression": "gzip"}, "compression 'gzip' is unknown: it is one of none, zstd, zstd-grouped, auto"),
        ({"compression": "ZSTD"}, "compression 'ZSTD' is unknown: it is one of none, zstd, zstd-grouped, auto"),
        ({"compression_level": 0}, "compression_level must be 1 to 22, not 0"),
        ({"compression_level": 23}, "compression_level must be 1 to 22, not 23"),
        ({"compression_level": "3"}, "compression_level must be 1 to 22, not '3'"),
        ({"compression_level": 3.0}, "compression_level must be 1 to 22, not 3.0"),
        ({"compression_level": True}, "compression_level must be 1 to 22, not True"),
        ({"multipart_threshold": -1}, "multipart_threshold must be a number of 0 or more, not -1"),
        ({"multipart_threshold": 1.5}, "multipart_threshold must be a number of 0 or more, not 1.5"),
        ({"keep_last": 0}, "keep_last must be a number of 1 or more, not 0"),
        ({"keep_last": True}, "keep_last must be a number of 1 or more, not True"),
        ({"strategy": "spiral"}, "unknown strategy 'spiral': choose one of flat, round_robin, binary"),
        ({"strategy": 7}, "unknown strategy 7: choose one of flat, round_robin, binary"),
    ],
)
def test_a_bad_option_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CheckpointConfig(**options)
    assert str(caught.value) == message


def test_defaults() -> None:
    config = CheckpointConfig()
    assert (config.strategy, config.compression, config.codec) == (Strategy.FLAT, None, "none")
    assert (config.memory, config.workers, config.keep_last) == (None, None, None)


@pytest.mark.parametrize("name", [None, "none", "zstd", "zstd-grouped", "auto"])
def test_every_compression_has_its_codec(name: str | None) -> None:
    assert CheckpointConfig(compression=name).codec == (name or "none")


def test_with_returns_a_changed_copy() -> None:
    config = CheckpointConfig()
    changed = config.with_strategy("Round-Robin").with_multipart_threshold(5).with_compression("zstd", 7)
    assert (changed.strategy, changed.multipart_threshold) == (Strategy.ROUND_ROBIN, 5)
    assert (changed.compression, changed.compression_level) == ("zstd", 7)
    assert changed.with_compression("auto").compression_level == 7
    assert changed.with_strategy(Strategy.BINARY).strategy is Strategy.BINARY
    assert config == CheckpointConfig()


def test_with_checks_too() -> None:
    config = CheckpointConfig()
    with pytest.raises(ConfigError, match="unknown strategy 'x'"):
        config.with_strategy("x")
    with pytest.raises(ConfigError, match="multipart_threshold"):
        config.with_multipart_threshold(-1)
    with pytest.raises(ConfigError, match="compression 'x'"):
        config.with_compression("x")


def test_a_strategy_may_be_given_by_name() -> None:
    assert CheckpointConfig(strategy="binary").strategy is Strategy.BINARY  # type: ignore[arg-type]
