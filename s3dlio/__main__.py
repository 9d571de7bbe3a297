"""``python -m s3dlio``: the command line, the same as the ``s3dlio`` script."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
