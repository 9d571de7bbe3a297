"""Ways to keep a state in an object store: this package and its peers.

Owns one class a saver, all with ``save``, ``load`` into new memory, ``check`` (that a load gives back what was saved)
and ``clear``. ``object_sink`` and ``object_servers`` call it. Peers with packages of their own run in an environment of
their own, as processes that answer lines.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from . import state
from .harness import say
from .object_cases import WORKERS, check_same
from .savers import wheel_python

if TYPE_CHECKING:
    from azure.storage.blob import ContainerClient

REQUESTS = 8
"""Of an SDK's own transfers; boto3's default is 10, azure-storage-blob's 1."""
_S3TORCHCONNECTOR = "1.5.0"


class Saver(Protocol):
    """One way to save and load the state it was made for."""

    name: str

    def save(self) -> object: ...

    def load(self) -> object: ...

    def check(self) -> None:
        """``ValueError`` unless a load gives back what was saved."""

    def clear(self) -> None:
        """Remove what was saved."""

    def close(self) -> None: ...


class Ours:
    """This package with two workers and an arena of ``memory`` bytes, touched beforehand."""

    def __init__(
        self,
        uri: str,
        options: Mapping[str, str],
        tree: Any,
        *,
        memory: int,
        connections: int | None = None,
        compression: str | None = None,
    ) -> None:
        from s3dlio import CheckpointConfig, CheckpointStore

        self.connections = connections or CheckpointConfig().connections
        self.store = CheckpointStore(
            uri,
            memory=memory,
            workers=WORKERS,
            connections=self.connections,
            compression=compression,
            options=dict(options),
        )
        self.name = f"s3dlio {self.store.uri.partition('://')[0]}://" + (f" {compression}" if compression else "")
        self.verified = ""
        self._tree = tree
        self._step = 0
        self.store.warmup()

    def save(self) -> object:
        self._step += 1
        self.verified = self.store.save(self._step, self._tree).verified
        return None

    def load(self) -> object:
        return self.store.load()

    def load_into(self, target: Any) -> object:
        """Load into existing tensors."""
        return self.store.load(into=target)

    def check(self) -> None:
        check_same(self.name, self._tree, self.load())

    def stored(self) -> tuple[float, float]:
        """Of the newest save: stored bytes for each raw byte, and the share of chunks that passed a codec."""
        reader = self.store.reader()
        manifest = reader.load_latest_manifest()
        assert manifest is not None
        shard = manifest["shards"][0]
        chunks = json.loads(bytes(reader.read_object(shard["index"]["key"])))["chunks"]
        codecs = chunks["codec"] if isinstance(chunks["codec"], list) else [chunks["codec"]] * len(chunks["raw"])
        return shard["size"] / shard["raw_size"], sum(codec != "none" for codec in codecs) / len(codecs)

    def clear(self) -> None:
        for info in self.store.list():
            self.store.delete(info.step)

    def close(self) -> None:
        self.store.close()


class Boto3Files:
    """boto3 as its documentation shows it: ``torch.save`` to memory, ``upload_fileobj``; and back. All defaults."""

    name = "boto3 upload_fileobj, download_fileobj"

    def __init__(self, endpoint: str, options: Mapping[str, str], bucket: str, tree: Any) -> None:
        import boto3

        self._client = boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=options["access_key_id"],
            aws_secret_access_key=options["secret_access_key"],
            region_name=options["region"],
        )
        self._at = (bucket, "boto3/state.pt")
        self._tree = tree

    def save(self) -> object:
        file = _saved(self._tree)
        self._client.upload_fileobj(file, *self._at)
        return None

    def load(self) -> object:
        file = io.BytesIO()
        self._client.download_fileobj(*self._at, file)
        return _loaded(file)

    def check(self) -> None:
        check_same(self.name, self._tree, self.load())

    def clear(self) -> None:
        bucket, key = self._at
        self._client.delete_object(Bucket=bucket, Key=key)

    def close(self) -> None:
        self._client.close()


class AzureFiles:
    """azure-storage-blob as its documentation shows it: ``torch.save`` to memory, ``upload_blob``; and back."""

    name = f"azure-storage-blob upload_blob, download_blob, max_concurrency={REQUESTS}"

    def __init__(self, container: ContainerClient, tree: Any) -> None:
        self._blob = container.get_blob_client("sdk/state.pt")
        self._tree = tree

    def save(self) -> object:
        self._blob.upload_blob(_saved(self._tree), overwrite=True, max_concurrency=REQUESTS)
        return None

    def load(self) -> object:
        file = io.BytesIO()
        self._blob.download_blob(max_concurrency=REQUESTS).readinto(file)
        return _loaded(file)

    def check(self) -> None:
        check_same(self.name, self._tree, self.load())

    def clear(self) -> None:
        if self._blob.exists():
            self._blob.delete_blob()

    def close(self) -> None:
        pass  # the container's owner closes it


def _saved(tree: Any) -> io.BytesIO:
    import torch

    file = io.BytesIO()
    torch.save(tree, file)
    file.seek(0)
    return file


def _loaded(file: io.BytesIO) -> object:
    import torch

    file.seek(0)
    return torch.load(file, weights_only=False)  # our own file


class Scripted:
    """A peer in a process of its own that answers ``save``, ``load``, ``check`` and ``drop`` with a line each.

    ``empty`` removes what it saved: not all of them can. Credentials are in its environment alone.
    """

    def __init__(self, name: str, command: list[str], server: Mapping[str, str], empty: Callable[[], object]) -> None:
        self.name = name
        self._empty = empty
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
            env={**os.environ, **_environment(server)},
            text=True,
        )
        self._answer("start")

    def save(self) -> object:
        return self._ask("save")

    def load(self) -> object:
        return self._ask("load")

    def check(self) -> None:
        self._ask("check")

    def clear(self) -> None:
        self._empty()

    def close(self) -> None:
        self._process.communicate()

    def _ask(self, work: str) -> object:
        assert self._process.stdin
        self._process.stdin.write(f"{work}\n")
        self._process.stdin.flush()
        return self._answer(work)

    def _answer(self, work: str) -> object:
        assert self._process.stdout
        line = self._process.stdout.readline().strip()
        if line != "ok":
            raise RuntimeError(f"{self.name}: {work}: {line or f'its process ended with code {self._process.wait()}'}")
        return None


def _environment(server: Mapping[str, str]) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": server["endpoint_url"],
        "AWS_ENDPOINT_URL_S3": server["endpoint_url"],
        "AWS_ACCESS_KEY_ID": server["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": server["secret_access_key"],
        "AWS_REGION": server["region"],
        "AWS_DEFAULT_REGION": server["region"],
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def wheel(bucket: str, server: Mapping[str, str], tree: Any, environments: Path, empty: Callable[[], object]) -> Saver:
    """The published s3dlio wheel, with a payload of random bytes as large as the state."""
    script = str(Path(__file__).with_name("object_wheel_script.py"))
    command = [str(wheel_python(environments)), "-I", script, f"s3://{bucket}/wheel", str(state.size(tree))]
    return Scripted("published s3dlio", command, server, empty)


def dcp(bucket: str, server: Mapping[str, str], tree: Any, environments: Path, empty: Callable[[], object]) -> Saver:
    """s3torchconnector's storage for torch DCP, with a reference state of the same size."""
    command = [str(_dcp_python(environments)), "-m", "perf.object_dcp_script"]
    command += [f"s3://{bucket}/dcp", str(state.size(tree))]
    return Scripted(f"torch DCP, s3torchconnector {_S3TORCHCONNECTOR}", command, server, empty)


def _dcp_python(environments: Path) -> Path:
    """The Python of an environment with s3torchconnector, made on first use, which finds torch where we do."""
    folder = environments / "s3torchconnector"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        say("making an environment for s3torchconnector")
        venv.EnvBuilder(with_pip=True, clear=True).create(folder)
        packages = [f"{name}=={_S3TORCHCONNECTOR}" for name in ("s3torchconnector", "s3torchconnectorclient")]
        command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", *packages, "tenacity"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        inside = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        packages_folder = subprocess.run(inside, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        (Path(packages_folder) / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
        (folder / "ready").touch()
    return python
