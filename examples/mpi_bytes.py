"""MPI ranks that save one checkpoint of plain bytes: each stores its shard, rank 0 commits them all.

    mpiexec -n 4 python examples/mpi_bytes.py file:///tmp/run     # or s3://bucket/run, az://account/container/run

``pip install mpi4py mpich`` brings an mpiexec. Run it again, with as many ranks: it goes on from what it finds.
"""

from __future__ import annotations

import sys

import numpy as np
from mpi4py import MPI

from s3dlio import CheckpointStore


def main(uri: str) -> None:
    """Diffuse heat along a rod that is cut into one piece for each rank; save every hundredth step."""
    comm = MPI.COMM_WORLD
    rank, ranks = comm.rank, comm.size
    rod = np.zeros(100_000 // ranks)
    rod[:10] = rank + 1.0
    with CheckpointStore(uri, strategy="round_robin") as store:
        first = 0
        manifest = comm.bcast(store.reader().load_latest_manifest() if rank == 0 else None)
        if manifest is not None:
            if manifest["world_size"] != ranks:
                raise SystemExit(f"the checkpoint is of {manifest['world_size']} ranks: start as many")
            rod[:] = np.frombuffer(store.reader().read_shard_by_rank(manifest, rank))  # verified, and not copied before
            first = manifest["global_step"]
        writer = store.writer(ranks, rank)
        for step in range(first + 1, first + 301):
            left = comm.sendrecv(rod[-1], (rank + 1) % ranks, source=(rank - 1) % ranks)
            right = comm.sendrecv(rod[0], (rank - 1) % ranks, source=(rank + 1) % ranks)
            rod += 0.25 * (np.concatenate(([left], rod[:-1])) - 2 * rod + np.concatenate((rod[1:], [right])))
            if step % 100 == 0:
                record = writer.save_distributed_shard(step, 0, "mpi", rod)  # durable when it returns
                records = comm.gather(record)
                if records is not None:
                    writer.finalize_distributed_checkpoint(step, 0, "mpi", records, {"ranks": ranks})
        heat = comm.reduce(rod.sum())
        if heat is not None:
            newest = store.latest()
            print(f"steps {first + 1} to {first + 300}: heat {heat:.6f}, newest {newest and newest.step}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
