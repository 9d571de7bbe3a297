"""The ``s3dlio`` command: look into a store, check it, copy it, take from it, and see the demo.

Owns the entry point, the exit codes (0 all is well, 1 failed, 2 wrong usage, 130 interrupted) and how an error is told:
one line on the standard error, a traceback only with ``--debug``. ``parser`` owns the arguments, ``commands`` what they
do. Starts fast: nothing here imports a framework, and the store is imported once a command opens one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from s3dlio.engine.errors import S3dlioError

from .parser import build_parser
from .store_options import given, in_a_hurry
from .terminal import warnings_told

FAILED = 1
INTERRUPTED = 130


def open_store(uri: str, options: Mapping[str, Any] | None = None) -> Any:
    """The store at ``uri``; commands close it. Tests replace this name."""
    from s3dlio.store import CheckpointStore

    return CheckpointStore(uri, options=in_a_hurry(uri, options or {}) or None)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; usage errors leave through argparse as ``SystemExit(2)``."""
    options = build_parser().parse_args(argv)
    if options.debug:
        logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        chosen = given(getattr(options, "option", []))
        with contextlib.nullcontext() if options.debug else warnings_told():
            code: int = options.run(options, partial(open_store, options=chosen) if chosen else open_store)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("s3dlio: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has left. Python flushes stdout once more at exit and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (S3dlioError, OSError) as error:
        return _tell(str(error), debug=options.debug)
    except Exception as error:  # noqa: BLE001 - the last stop: people get one line, --debug gives the rest
        return _tell(f"internal error, please report it: {type(error).__name__}: {error}", debug=options.debug)
    return code


def _tell(message: str, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"s3dlio: error: {' '.join(message.split())}", file=sys.stderr)
    return FAILED
