"""Hugging Face Trainer: ``S3dlioCallback``, which stores each folder that the trainer has saved, in the background.

Owns when a folder is taken, when training waits and when an error is raised; ``folders`` stores and restores.
"""

from __future__ import annotations

import logging
from collections import deque
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from ..engine.errors import DependencyError, S3dlioError
from ..info import CheckpointInfo
from ..store import CheckpointStore
from . import folders
from .background import Background

try:
    import torch
    from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
    from transformers.training_args import TrainingArguments
except ImportError as error:
    raise DependencyError("S3dlioCallback needs transformers: pip install 's3dlio[transformers]'") from error

WAITING = 2
"""Folders that may wait to be stored: each takes the space of a checkpoint beyond ``save_total_limit``."""

_log = logging.getLogger("s3dlio")


class S3dlioCallback(TrainerCallback):
    """``Trainer(callbacks=[callback])`` stores every ``checkpoint-N`` at ``uri`` as one committed checkpoint.

    ``on_save`` takes the folder's files by hard links, which outlast the trainer's own deletion by
    ``save_total_limit``, and returns; they are uploaded in the background. A failure is raised at the next save or at
    the end of training, which waits for the uploads, and leaves the links. ``keep_last``: how many checkpoints stay in
    the store. ``config``: further options of ``CheckpointStore``.

    To go on from the store, ``trainer.train(resume_from_checkpoint=callback.restore(args.output_dir))``; with several
    ranks inside ``with args.main_process_first():``. All ranks must save to one file system that rank 0 sees.
    """

    def __init__(self, uri: str, *, keep_last: int | None = None, **config: Any) -> None:
        super().__init__()
        self._open = partial(CheckpointStore, uri, keep_last=keep_last, **config)
        self._store: CheckpointStore | None = self._open()  # tells now what is wrong with the options
        self._work = Background("s3dlio-transformers")
        self._waiting: deque[Future[None]] = deque()
        self._taken: dict[int, folders.Snapshot] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tidy what a killed process left in ``output_dir``; raise what an earlier training left."""
        if state.is_world_process_zero:
            self._work.wait()
            for path in folders.tidy(Path(args.output_dir)):
                _log.warning("%s holds the only copy of a checkpoint that was not stored: use or remove it", path)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take the folder that was just saved, and return; raise what earlier uploads left.

        Waits while ``WAITING`` folders are not stored yet.
        """
        self._work.check()
        folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        _check_all_seen(folder)
        if not state.is_world_process_zero:
            return
        while len(self._waiting) >= WAITING:
            self._waiting.popleft().exception()
        self._work.check()
        store, step, epoch = self._opened(), state.global_step, int(state.epoch or 0)
        taken = self._taken[step] = folders.snapshot(folder)
        self._waiting.append(self._work.submit(lambda: self._upload(store, taken, step, epoch)))

    def _upload(self, store: CheckpointStore, taken: folders.Snapshot, step: int, epoch: int) -> None:
        """Store and commit a folder; in the background."""
        try:
            folders.store_files(store, taken, step, epoch, "transformers")
        except S3dlioError as error:
            if self._taken.get(step) is taken:
                raise S3dlioError(
                    f"{taken.folder} was not stored: {type(error).__name__}: {error}; its files stay in {taken.path}"
                ) from error
            _log.info("%s was saved again while it was stored: the new one follows", taken.folder)
        taken.remove()
        if self._taken.get(step) is taken:
            del self._taken[step]

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait until every folder is committed, end the workers, and raise what failed."""
        self.close()

    def close(self) -> None:
        """As ``on_train_end``, which a training that was broken off does not reach. It may be used again."""
        self._waiting.clear()
        try:
            self._work.close()
        finally:
            store, self._store = self._store, None
            if store is not None:
                store.close()

    def latest(self) -> CheckpointInfo | None:
        """The newest committed checkpoint, ``None`` in an empty store."""
        return self._opened().latest()

    def restore(self, output_dir: str, step: int | None = None) -> str | None:
        """Bring the newest committed checkpoint, or that of ``step``, back into ``output_dir``; the folder's path.

        ``None`` for an empty store, which ``resume_from_checkpoint`` takes as a fresh start. The folder appears whole,
        verified, and replaces a torn one of its name; one that holds these very files already stays.
        """
        store = self._opened()
        info = store.latest() if step is None else store.info(step)
        if info is None:
            return None
        folder = Path(output_dir, f"{PREFIX_CHECKPOINT_DIR}-{info.step}")
        folders.restore_folder(store, info, folder)
        return str(folder)

    def _opened(self) -> CheckpointStore:
        if self._store is None:
            self._store = self._open()
        return self._store


def _check_all_seen(folder: Path) -> None:
    """Once every rank has saved: ``S3dlioError``, on all ranks, if rank 0 does not see the files of one."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return
    distributed.barrier()
    seen: list[list[str]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(seen, folders.names_in(folder))
    for rank, names in enumerate(seen):
        if hidden := sorted(set(names) - set(seen[0])):
            raise S3dlioError(
                f"{folder}: rank {rank} has {', '.join(hidden[:3])}, which rank 0 does not see: all ranks must save "
                "to one file system"
            )
