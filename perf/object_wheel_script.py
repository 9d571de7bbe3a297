"""Drives the published s3dlio wheel on S3; runs in that package's own environment, by path, and needs nothing of ours.

Answers each line ``save``, ``load`` or ``check`` on its input with ``ok`` or what went wrong. Where the server is and
how to sign in stands in its environment.
"""

import os
import sys
from typing import Any


def main(uri: str, size: int) -> None:
    """Serve a payload of ``size`` bytes."""
    import s3dlio

    store = s3dlio.PyCheckpointStore(uri)
    block = os.urandom(1 << 20)
    payload = block * (size // len(block)) + block[: size % len(block)]
    print("ok", flush=True)
    step = 0
    for line in sys.stdin:
        command = line.strip()
        try:
            if command == "save":
                step += 1
                store.save(step, 0, "bytes", payload)
            else:
                view: Any = store.load_latest()
                if len(view) != size:
                    raise ValueError(f"{len(view)} bytes came back of {size}")
                if command == "check" and bytes(view) != payload:
                    raise ValueError("other bytes came back than were saved")
                del view
            print("ok", flush=True)
        except Exception as error:  # noqa: BLE001 - told to the benchmark, which goes on without this peer
            print(f"{type(error).__name__}: {error}".replace("\n", " "), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
