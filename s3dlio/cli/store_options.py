"""Options of object stores on the command line: ``--option NAME=VALUE``, any number of times.

Pure. The parser's type for one option, and what the command line adds by itself. The stores know the names and check
the values; what is a credential is refused here, since every process of the machine can read a command line.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any

from s3dlio.engine.backends import OBJECT_STORES

FIRST_DEADLINE = 15
"""Seconds in which an object store has to answer for the first time: somebody waits, and may have mistyped a name. Once
it has answered, a command that runs for long insists as a training run does."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SECRET = re.compile(r"secret|token|password|credential|access_key|account_key|connection_string|signature|\bsas\b")
_INTEGER = re.compile(r"-?[0-9]+")

Pair = tuple[str, Any]


def pair(text: str) -> Pair:
    """``NAME=VALUE`` as name and value: ``true`` and ``false`` are bools, digits an int, all else text."""
    name, separator, value = text.partition("=")
    name = name.strip().lower().replace("-", "_")
    if not separator or not _NAME.fullmatch(name):
        raise argparse.ArgumentTypeError("write NAME=VALUE, as in endpoint_url=http://127.0.0.1:9000")
    if _SECRET.search(name):
        raise argparse.ArgumentTypeError(
            f"{name} is a credential, which others could read from the command line: set the store's environment "
            "variables instead (AWS_…, AZURE_…)"
        )
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    return name, int(value) if _INTEGER.fullmatch(value) else value


def add_option(parser: argparse.ArgumentParser, flag: str, text: str) -> None:
    """Let ``parser`` take ``flag NAME=VALUE`` any number of times; what ``given`` reads."""
    parser.add_argument(flag, metavar="NAME=VALUE", type=pair, action="append", default=[], help=text)


def given(*pairs: Sequence[Pair]) -> dict[str, Any]:
    """The options as a store takes them; of a name that is given twice the last counts."""
    return {name: value for several in pairs for name, value in several}


def in_a_hurry(uri: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` with ``FIRST_DEADLINE`` for an object store, unless they say how long to insist."""
    if uri.partition("://")[0] not in OBJECT_STORES or options.keys() & {"retry_deadline", "first_deadline"}:
        return dict(options)
    return {**options, "first_deadline": FIRST_DEADLINE}
