"""PyTorch Lightning: ``S3dlioCheckpointIO``, which lets training go on while a checkpoint is stored.

Owns which path is saved, loaded or removed after what, and when an error is raised; ``foreign`` packs what is no array,
``paths`` keeps the stores. A path is a store that holds one checkpoint: saving it again replaces the old one once the
new one is committed, and the command line's tools work on it.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from importlib import import_module
from typing import Any

from ..config import CheckpointConfig
from ..engine.errors import ConfigError, DependencyError, S3dlioError
from ..handle import Handle
from ..ids import STEP_MAX, CheckpointId
from ..store import CheckpointStore
from .background import Background
from .paths import PathStores, local_path, uri_of

_NEEDED = "S3dlioCheckpointIO needs Lightning: pip install 's3dlio[lightning]'"

try:
    import torch
    from fsspec.core import url_to_fs

    from . import path_files
    from .foreign import pack, unpack
except ImportError as error:
    raise DependencyError(_NEEDED) from error

_log = logging.getLogger("s3dlio")


def _base() -> Any:
    """The interface of that one of Lightning's two packages whose trainer is used: each knows its own only."""
    apart = "lightning_fabric" in sys.modules and "lightning" not in sys.modules
    names = ["lightning.fabric.plugins", "lightning_fabric.plugins"]
    for name in reversed(names) if apart else names:
        try:
            return import_module(name).CheckpointIO
        except ImportError:
            continue
    raise DependencyError(_NEEDED)


CheckpointIO: Any = _base()
_MANIFEST = re.compile(r"(?:(.*)/)?(manifests/ckpt-[^/]+\.json)")


class S3dlioCheckpointIO(CheckpointIO):
    """``Trainer(plugins=[S3dlioCheckpointIO()])``; paths may be plain or begin with ``s3://``, ``az://``, ``direct://``.

    A save is staged when ``save_checkpoint`` returns, and stored and committed in the background; its failure is raised
    by the next call, at the latest by ``teardown``, which the trainer calls at its end. ``pickle``: whether objects
    that are neither arrays nor plain values, such as classes among the hyper-parameters, are pickled, and unpickled
    when they are loaded. ``config``: the options of ``CheckpointConfig``, but ``keep_last``.

    ``ModelCheckpoint`` takes a ``dirpath`` with a scheme, but not ``file://``, of which it makes a relative path. With
    ``ckpt_path="last"`` Lightning finds local paths only: pass ``latest(dirpath)``. For ``load_from_checkpoint``, which
    passes by every plugin, there is ``load_module``.
    """

    def __init__(self, *, pickle: bool = False, **config: Any) -> None:
        super().__init__()
        if "keep_last" in config:
            raise ConfigError("a path holds one checkpoint: ModelCheckpoint(save_top_k=) says how many paths stay")
        self.__setstate__((pickle, CheckpointConfig(**config, keep_last=1)))

    def __getstate__(self) -> tuple[bool, CheckpointConfig]:
        """What a launcher takes to other processes; saves in flight stay here."""
        return self._pickle, self._config

    def __setstate__(self, state: tuple[bool, CheckpointConfig]) -> None:
        self._pickle, self._config = state
        self._work = Background("s3dlio-lightning")
        self._stores = PathStores(self._config)
        self._newest: Future[None] | None = None
        self._removals: dict[str, Future[None]] = {}
        path_files.ask(self._stores)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
    ) -> None:
        """Copy ``checkpoint`` and return; the rest happens in the background.

        ``storage_options``: options of the object store, over those of the constructor. Raises ``UnsupportedError``
        naming what needs ``pickle=True``, ``ConfigError`` for a path that is a file, and what earlier calls left.
        """
        self._check()
        uri = uri_of(path)
        _make_folder(uri)
        state = pack(checkpoint, allow_pickle=self._pickle)
        if (removal := self._removals.pop(uri, None)) is not None:
            removal.exception()  # else it would take what is about to be saved
        store = self._stores.open(uri, storage_options)
        try:
            handle = store.save_async(
                _number(checkpoint.get("global_step")),
                state,
                epoch=_number(checkpoint.get("epoch")),
                framework="lightning",
                coordinator=None,
            )
        except BaseException:
            self._stores.release(uri)
            raise
        self._newest = self._work.submit(lambda: self._settle(uri, handle))
        _forget_listing(uri)

    def _settle(self, uri: str, handle: Handle) -> None:
        """Wait for the commit; in the background."""
        try:
            handle.result()
        except S3dlioError as error:
            raise S3dlioError(f"{uri} was not saved: {type(error).__name__}: {error}") from error
        finally:
            self._stores.release(uri)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint at ``path``, verified; its tensors are views of one memory. Waits for what is being saved.

        ``map_location`` as in ``torch.load``; by default tensors come to the CPU. ``weights_only=True`` refuses pickled
        objects even with ``pickle=True``. Raises ``CheckpointNotFoundError`` (a ``FileNotFoundError``).
        """
        self._work.wait()
        uri = uri_of(path)
        folder = local_path(uri)
        if folder is not None and os.path.isfile(folder):
            raise ConfigError(f"{folder} is a file, not a checkpoint of s3dlio: load it with TorchCheckpointIO")
        with self._stores.opened(uri) as store:
            state = store.load(coordinator=None)
        if not isinstance(state, dict):
            raise ConfigError(f"{uri} holds no checkpoint of Lightning or Fabric, but a {type(state).__name__}")
        state = unpack(state, allow_pickle=self._pickle and not weights_only)
        return state if map_location is None else _moved(state, _device_of(map_location), {})

    def load_module(self, kind: Any, path: str | os.PathLike[str], **options: Any) -> Any:
        """``kind.load_from_checkpoint(path, **options)``, which itself opens files only.

        The checkpoint is in memory twice meanwhile.
        """
        buffer = io.BytesIO()
        torch.save(self.load_checkpoint(path), buffer)
        buffer.seek(0)
        if "weights_only" in inspect.signature(kind.load_from_checkpoint).parameters:  # these bytes are our own
            options = {"weights_only": False, **options}
        return kind.load_from_checkpoint(buffer, **options)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint in the background, once every save before this call has ended.

        If the newest of these fails, it stays. One that is not there is fine. Raises what earlier calls left.
        """
        newest = self._newest
        self._check()
        uri = uri_of(path)
        self._removals = {other: removal for other, removal in self._removals.items() if not removal.done()}
        self._removals[uri] = self._work.submit(lambda: self._remove(uri, newest))
        _forget_listing(uri)

    def _remove(self, uri: str, newest: Future[None] | None) -> None:
        if newest is not None and newest.exception() is not None:
            _log.warning("%s stays: the checkpoint that was to replace it was not saved", uri)
            return
        folder = local_path(uri)
        if folder is not None and (os.path.islink(folder) or os.path.isfile(folder)):
            os.unlink(folder)  # of save_last="link", or of another plugin: what a link leads to is not meant
            return
        with self._stores.opened(uri) as store:
            _empty(store)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def latest(self, dirpath: str | os.PathLike[str]) -> str | None:
        """The path below ``dirpath`` that was saved last, for ``fit(ckpt_path=...)``; ``None`` if there is none."""
        self._work.wait()
        newest: tuple[CheckpointId, str] | None = None
        with self._stores.opened(uri_of(dirpath)) as store:
            for item in store.control().list():
                match = _MANIFEST.fullmatch(item.key)
                id_ = CheckpointId.of_manifest_key(match[2]) if match else None
                if match and match[1] and id_ and (newest is None or id_.order > newest[0].order):
                    newest = id_, match[1]
        return None if newest is None else f"{os.fspath(dirpath).rstrip('/')}/{newest[1]}"

    def teardown(self) -> None:
        """Wait for saves and removals, end the workers, and raise what earlier calls left. It may be used again."""
        self._newest = None
        self._removals.clear()
        try:
            self._work.close()
        finally:
            self._stores.close()

    def _check(self) -> None:
        try:
            self._work.check()
        except BaseException:
            self._newest = None
            raise


def _make_folder(uri: str) -> None:
    """Have a local path exist from now on, as it would with a plugin that waits: names are chosen by that."""
    folder = local_path(uri)
    if folder is None:
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{folder} cannot be a folder, in which a checkpoint is kept: move the file away") from error


def _empty(store: CheckpointStore) -> None:
    """Remove checkpoints first, so that none is ever listed half-deleted, then whatever is left."""
    for step in {info.step for info in store.list()}:
        store.delete(step)
    control = store.control()
    for upload in control.uploads():
        control.abort(upload.key, upload.upload)
    control.each(control.delete, [item.key for item in control.list()])


def _forget_listing(uri: str) -> None:
    """fsspec's own file systems of object stores keep listings, and this process has changed one."""
    if local_path(uri) is None:
        with contextlib.suppress(ImportError):
            url_to_fs(uri)[0].invalidate_cache()


def _number(value: Any) -> int:
    """A step or an epoch, or 0: Fabric saves states that have neither."""
    return value if type(value) is int and 0 <= value <= STEP_MAX else 0


def _device_of(map_location: Any) -> Callable[[torch.Tensor], Any]:
    """Where ``torch.load`` with this ``map_location`` would put a tensor that was on the CPU."""
    if isinstance(map_location, Mapping):
        return lambda _: map_location.get("cpu", "cpu")
    if callable(map_location):

        def ask(tensor: torch.Tensor) -> Any:
            storage = map_location(tensor.untyped_storage(), "cpu")
            return "cpu" if storage is None else storage.device

        return ask
    return lambda _: map_location


def _moved(value: Any, device_of: Callable[[torch.Tensor], Any], known: dict[int, Any]) -> Any:
    """The tensors of a loaded state on other devices, in its own containers; a tensor that occurs twice stays one."""
    if isinstance(value, torch.Tensor):
        if id(value) not in known:
            moved = value.to(device_of(value))
            known[id(value)] = value, moved  # with the old one, whose number would else be another's
        return known[id(value)][1]
    if isinstance(value, dict):
        for key, child in value.items():
            value[key] = _moved(child, device_of, known)
    elif isinstance(value, list):
        value[:] = [_moved(child, device_of, known) for child in value]
    elif type(value) is tuple:
        return tuple(_moved(child, device_of, known) for child in value)
    return value
