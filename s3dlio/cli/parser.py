"""The arguments of the ``s3dlio`` command.

Owns names, defaults and help texts; never opens a store. ``main`` calls ``build_parser``; ``commands`` hold what runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import s3dlio
from s3dlio.demo.options import DEFAULT_FOLDER, SIZES, DemoOptions

from . import commands
from .copy import copy
from .export import export
from .store_options import add_option, pair

OPTION_HELP = "an option of the object store, such as endpoint_url=http://127.0.0.1:9000; may be repeated"


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; the parsed ``run`` is the command's function."""
    parser = argparse.ArgumentParser(
        prog="s3dlio",
        description="Checkpoints of training runs: list, inspect, verify, copy, export, delete, and a demo.",
        epilog="A URI is file:///folder, direct:///folder, s3://bucket/prefix or az://account/container/prefix; a "
        "plain path means file://. Credentials come from the environment, as the stores' own tools take them.",
    )
    parser.add_argument("--version", action="version", version=f"s3dlio {s3dlio.__version__}")
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON value, for machines")
    common.add_argument("--debug", action="store_true", help="log everything; errors come with a traceback")

    def verb(name: str, run: object, text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text.capitalize() + ".", parents=[common])
        added.set_defaults(run=run)
        return added

    _fill_demo(verb("demo", commands.demo, "train, die in the middle of a save, resume, compare bit for bit"))
    one = verb("ls", commands.ls, "list the committed checkpoints, oldest first")
    one.add_argument("uri", metavar="URI", type=as_uri)
    add_option(one, "--option", OPTION_HELP)
    one = verb("show", commands.show, "show one checkpoint, the newest by default")
    _add_target(one, "?")
    one = verb(
        "verify", commands.verify, "read every byte back and check every checksum, of all checkpoints by default"
    )
    _add_target(one, "?")
    one = verb("delete", commands.delete, "delete the checkpoint of a step")
    _add_target(one, None)
    one.add_argument("--yes", action="store_true", help="do not ask")
    _fill_copy(verb("copy", copy, "copy checkpoints, the newest by default, and verify the copy"))
    one = verb("export", export, "write one rank's state as a safetensors file")
    _add_target(one, None)
    one.add_argument("file", metavar="FILE.safetensors", type=Path)
    one.add_argument("--rank", type=_count, metavar="N", help="whose state, where the checkpoint has several ranks")
    one.add_argument("--force", action="store_true", help="replace FILE if it exists")
    return parser


def as_uri(text: str) -> str:
    """``text`` as a URI; a plain path becomes an absolute ``file://``."""
    return text if "://" in text else f"file://{Path(text).absolute()}"


def _add_target(parser: argparse.ArgumentParser, nargs: str | None) -> None:
    parser.add_argument("uri", metavar="URI", type=as_uri)
    parser.add_argument("step", metavar="STEP", type=_count, nargs=nargs)
    add_option(parser, "--option", OPTION_HELP)


def _fill_copy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", type=as_uri)
    parser.add_argument("target", metavar="DST", type=as_uri)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("step", metavar="STEP", type=_count, nargs="?")
    which.add_argument("--all", action="store_true", help="all checkpoints, in order of saving")
    parser.add_argument(
        "--option",
        metavar="NAME=VALUE",
        type=pair,
        action="append",
        default=[],
        dest="store_option",
        help="an option of both object stores",
    )
    add_option(parser, "--from-option", "an option of SRC alone")
    add_option(parser, "--to-option", "an option of DST alone")


def _fill_demo(parser: argparse.ArgumentParser) -> None:
    default = DemoOptions()
    parser.add_argument(
        "uri", metavar="URI", type=as_uri, nargs="?", help=f"save in a fresh folder below (default ./{DEFAULT_FOLDER})"
    )
    parser.add_argument("--size", choices=sorted(SIZES), default=default.size, help="model (default %(default)s)")
    parser.add_argument("--steps", type=_count, default=default.steps, help="training steps (default %(default)s)")
    parser.add_argument(
        "--save-every", type=_count, default=default.save_every, metavar="STEPS", help="default %(default)s"
    )
    parser.add_argument(
        "--keep",
        type=_count,
        default=default.keep,
        metavar="N",
        help="checkpoints kept, 0 for all (default %(default)s)",
    )


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


_count.__name__ = "number"  # argparse names the type in its error
