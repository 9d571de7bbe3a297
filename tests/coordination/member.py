"""One rank of a job that holds a council over the board that ``auto`` finds: run by the tests under each launcher.

Talks of several topics at once from threads, in a different order on each rank; prints what it heard last.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor

from s3dlio.engine.contract import Control

TOPICS = 8


def main(kind: str) -> None:
    start(kind)
    from s3dlio.coordination.boards import seat_of

    seat = seat_of("auto", "file:///nowhere", no_store, 30.0)
    assert seat is not None, f"no board was found under {kind}"
    assert seat_of("auto", "file:///nowhere", no_store, 30.0) is seat
    assert seat_of(None, "file:///nowhere", no_store, 30.0) is None
    council = seat.council
    topics = [seat.topic("test") for _ in range(TOPICS)]

    def attend(topic: str) -> bytes:
        council.say(topic, f"{topic}: {council.rank}\0\xff".encode("latin-1") + bytes(3 << 20))
        if council.presides:
            words = dict(council.gather(topic, range(1, council.world_size)))
            assert all(len(word) > 3 << 20 for word in words.values())
            council.announce(topic, b",".join(word.partition(b"\0")[0] for word in words.values()))
            return b""
        return council.hear(topic)

    order = topics if council.rank % 2 else topics[::-1]
    with ThreadPoolExecutor(TOPICS) as pool:
        heard = dict(zip(order, pool.map(attend, order), strict=True))
    if council.rank:
        for topic in topics:
            said = [f"{topic}: {rank}" for rank in range(1, council.world_size)]
            assert heard[topic].decode() == ",".join(said)
    council.say("bye", b"")
    if council.presides:
        list(council.gather("bye", range(1, council.world_size)))
    print(f"rank {council.rank} of {council.world_size} has heard all", flush=True)


def no_store() -> Control:
    raise AssertionError("no store is needed")


def start(kind: str) -> None:
    """Bring up the job's own coordination, as a training script would."""
    if kind == "torch":
        import torch.distributed as dist

        dist.init_process_group("gloo")
    elif kind == "jax":
        import jax

        jax.distributed.initialize(
            os.environ["COORDINATOR"], int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"]), local_device_ids=[0]
        )
    else:
        from mpi4py import MPI

        assert MPI.Is_initialized()


if __name__ == "__main__":
    main(sys.argv[1])
