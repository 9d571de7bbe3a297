"""Everything that saves and loads a state, under one face: this package, the plain files, and the peers.

Owns one class a saver: ``save`` until durable (file and folder fsynced), ``load`` into new memory with every byte read.
``throughput``, ``stall``, ``interference`` and ``memory`` call it. A peer that is not installed fails in its own case.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from . import limits, state
from .harness import Timed, say

if TYPE_CHECKING:
    from s3dlio import CheckpointStore, Handle


class Saver(Protocol):
    """One way to save and load the state it was made for; ``folder`` holds its files only."""

    name: str
    folder: Path

    def save(self) -> object: ...

    def load(self) -> object: ...

    def clear(self) -> None:
        """Remove what was saved."""

    def close(self) -> None: ...


def emptied(folder: Path) -> Path:
    """``folder``, existing and empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


class Ours:
    """This package, on ``scheme``; ``memory`` bytes of arena (None: its default), touched beforehand if ``warm``."""

    def __init__(
        self,
        folder: Path,
        tree: Any,
        scheme: str,
        compression: str | None = None,
        *,
        memory: int | None = None,
        warm: bool = True,
    ) -> None:
        self.name = f"s3dlio {scheme}://" + (f" {compression}" if compression else "")
        self.folder = emptied(folder)
        self._tree = tree
        self._step = 0
        self.store = open_store(f"{scheme}://{self.folder}", compression, memory)
        if warm:
            self.store.warmup()

    def save(self) -> object:
        self._step += 1
        return self.store.save(self._step, self._tree)

    def begin(self, *, defer_staging: bool = False) -> Handle:
        """Start a save in the background."""
        self._step += 1
        return self.store.save_async(self._step, self._tree, defer_staging=defer_staging)

    def load(self) -> object:
        return self.store.load()

    def load_into(self, target: Any) -> object:
        """Load into existing tensors."""
        return self.store.load(into=target)

    def clear(self) -> None:
        for info in list(self.store.list()):
            self.store.delete(info.step)

    def close(self) -> None:
        self.store.close()


def roomy(nbytes: int) -> int:
    """An arena that holds a state of ``nbytes`` at once: a smaller one streams, and staging waits for storage."""
    return nbytes + nbytes // 4 + (64 << 20)


def open_store(uri: str, compression: str | None = None, memory: int | None = None) -> CheckpointStore:
    """A store of this package."""
    from s3dlio import CheckpointStore

    return CheckpointStore(uri, compression=compression, memory=memory)


class Plain:
    """The disk without anybody: as many bytes as the state has, in one file."""

    def __init__(self, folder: Path, nbytes: int, requests: int, *, direct: bool) -> None:
        self.name = f"plain {'O_DIRECT' if direct else 'buffered + fsync'}, {requests} in flight"
        self.folder = emptied(folder)
        self.file = limits.PlainFile(self.folder / "plain.bin", nbytes, requests, direct=direct)

    def save(self) -> object:
        self.file.write()
        return None

    def load(self) -> object:
        self.file.read()
        return None

    def clear(self) -> None:
        self.file.path.unlink(missing_ok=True)

    def close(self) -> None:
        pass


class TorchSave:
    """``torch.save`` and ``torch.load``."""

    name = "torch.save"
    file = "state.pt"

    def __init__(self, folder: Path, tree: Any) -> None:
        self.folder = emptied(folder)
        self._path = self.folder / self.file
        self._tree = tree

    def save(self) -> object:
        import torch

        torch.save(self._tree, self._path)
        limits.fsync(self._path, self.folder)
        return None

    def load(self) -> object:
        import torch

        return torch.load(self._path, weights_only=False)  # our own file; it may hold NumPy arrays

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        pass


class Safetensors:
    """``safetensors.torch``: the tensors only. Its load maps the file, so every page is touched to be compared."""

    name = "safetensors"
    file = "state.safetensors"

    def __init__(self, folder: Path, tree: Any) -> None:
        self.folder = emptied(folder)
        self._path = self.folder / self.file
        self._tensors = state.flat(tree)

    def save(self) -> object:
        from safetensors.torch import save_file

        save_file(self._tensors, self._path)
        limits.fsync(self._path, self.folder)
        return None

    def load(self) -> object:
        from safetensors.torch import load_file

        return touched(load_file(self._path))

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        pass


def touched(mapped: dict[str, Any]) -> dict[str, Any]:
    """``mapped`` with every page in memory."""
    import torch

    for tensor in mapped.values():
        tensor.view(-1).view(torch.uint8)[::4096].sum()
    return mapped


class Dcp:
    """torch.distributed.checkpoint in a world of one; ``mode`` is ``thread`` or ``process`` for its ``async_save``."""

    def __init__(self, folder: Path, tree: Any, mode: str = "thread") -> None:
        import torch.distributed as dist

        self.name = f"torch DCP {mode}"
        self.folder = emptied(folder)
        self._tree, self._mode = tree, mode
        self._step = 0
        if not dist.is_initialized():
            rendezvous = self.folder / "rendezvous"
            dist.init_process_group("cpu:gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)

    def save(self) -> object:
        from torch.distributed.checkpoint.state_dict_saver import save

        save(self._tree, storage_writer=self._writer())
        limits.fsync(*self._newest().iterdir(), self._newest())
        return None

    def begin(self) -> Any:
        """Start a save in the background; the future of its end."""
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save

        kind = AsyncCheckpointerType.PROCESS if self._mode == "process" else AsyncCheckpointerType.THREAD
        return async_save(self._tree, storage_writer=self._writer(), async_checkpointer_type=kind)

    def load(self) -> object:
        from torch.distributed.checkpoint.state_dict_loader import load

        into = state.empty_like(self._tree)
        load(into, checkpoint_id=self._newest())
        return into

    def _writer(self) -> Any:
        from torch.distributed.checkpoint.filesystem import FileSystemWriter

        self._step += 1
        return FileSystemWriter(self._newest(), sync_files=True, thread_count=2)

    def _newest(self) -> Path:
        return self.folder / str(self._step)

    def clear(self) -> None:
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)

    def close(self) -> None:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


class Wheel:
    """The published s3dlio wheel, in an environment and a process of its own, with a payload of as many bytes.

    Seconds are those of its own process; the payload is random bytes.
    """

    name = "published s3dlio"

    def __init__(self, folder: Path, nbytes: int, environments: Path) -> None:
        self.folder = emptied(folder)
        script = Path(__file__).with_name("wheel_script.py")
        command = [str(wheel_python(environments)), "-I", str(script), str(self.folder), str(nbytes)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def save(self) -> object:
        return Timed({"seconds": float(self._ask("save"))})

    def load(self) -> object:
        return Timed({"seconds": float(self._ask("load"))})

    def clear(self) -> None:
        self._ask("drop")

    def close(self) -> None:
        self._process.communicate()

    def _ask(self, command: str) -> str:
        assert self._process.stdin
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the published wheel's process ended with code {self._process.wait()}")
        return line


def wheel_python(environments: Path) -> Path:
    """The Python of an environment with the published wheel, made on first use: both packages have one name."""
    folder = environments / "published"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        say("making an environment for the published wheel")
        venv.EnvBuilder(with_pip=True, clear=True).create(folder)
        command = [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", "s3dlio", "numpy"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        (folder / "ready").touch()
    return python


def opened(makers: list[Callable[[], Saver]]) -> tuple[list[Saver], list[str]]:
    """Every saver that can be made here, and a note for each that cannot."""
    savers: list[Saver] = []
    notes: list[str] = []
    for make in makers:
        try:
            savers.append(make())
        except Exception as error:  # noqa: BLE001 - a peer that cannot run must not hide the others
            notes.append(f"left out: {type(error).__name__}: {error}")
            say(notes[-1])
    return savers, notes
