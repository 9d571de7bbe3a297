"""Drives the published s3dlio wheel; runs in that package's own environment, by path, and needs nothing of ours.

Answers each line ``command argument`` on its input with the seconds it took.
"""

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any


def main(folder: Path, size: int) -> None:
    """Serve ``save`` (durable), ``load`` (as a view) and ``drop`` for a payload of ``size`` bytes."""
    import s3dlio

    store = s3dlio.PyCheckpointStore(f"file://{folder}")
    block = os.urandom(1 << 20)
    payload = block * (size // len(block)) + block[: size % len(block)]
    print(s3dlio.__file__, flush=True)
    view: Any = None
    for line in sys.stdin:
        command = line.strip()
        started = time.perf_counter()
        if command == "save":
            store.save(1, 0, "bytes", payload)
            written = [path for path in folder.rglob("*") if path.is_file()]
            # It does not sync what it writes; to compare durable saves, this does.
            for path in [*written, *{path.parent for path in written}]:
                fd = os.open(path, os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)
        elif command == "load":
            view = store.load_latest()
            assert len(view) == size
        elif command == "drop":
            shutil.rmtree(folder)
            folder.mkdir()
        print(time.perf_counter() - started, flush=True)
        view = None


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
