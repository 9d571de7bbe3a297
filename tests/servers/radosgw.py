"""Ceph's RADOS gateway with one monitor and one disk: an older store that ignores what it does not know.

It verifies signatures and signed payloads, ignores checksum headers, and overwrites in spite of a condition on
CompleteMultipartUpload. Opt-in (`make test-rgw`), since Ceph comes from the system's packages. Owns its configuration;
the fixture ``radosgw`` calls ``running``.
"""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from . import process
from .s3_server import S3Server

HOST = "127.0.0.1"
ACCESS_KEY, SECRET_KEY = "testkey", "testsecret"
_PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
_INSTALL = "apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common"
_STEP_LIMIT = 120

# The monitor's client mode must be crc: without keys the gateway asks for the secure mode and then fails. The disk is a
# file with BlueStore, since deleted objects are collected late and would fill memory. The gateway collects every 2 s.
_CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = [v2:{host}:{monitor}]
public addr = {host}
cluster addr = {host}
ms bind msgr1 = false
ms mon client mode = crc
ms client mode = crc
ms cluster mode = crc
ms service mode = crc
auth cluster required = none
auth service required = none
auth client required = none
run dir = {folder}/run
admin socket = {folder}/run/$name.asok
log file = {folder}/log/$name.log
pid file = {folder}/run/$name.pid
crash dir = {folder}/crash
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data = {folder}/mon
mon data avail crit = 1
mon data avail warn = 2
mon max pg per osd = 1000
osd data = {folder}/osd
osd objectstore = bluestore
osd crush chooseleaf type = 0
osd class load list = *
osd class default list = *
osd memory target = 1G
osd max object size = 256M
bluestore block create = true
bluestore block size = 12G
bluestore fsck on mount = false
[client.rgw.a]
rgw data = {folder}/rgw
rgw frontends = beast endpoint={host}:{port}
rgw gc obj min wait = 1
rgw gc processor period = 2
rgw gc processor max time = 2
rgw enable ops log = false
rgw enable usage log = false
"""


@contextmanager
def running() -> Iterator[S3Server]:
    """A gateway on a free port of the loopback, with its own cluster; `ServerError` says what to install."""
    if missing := [program for program in _PROGRAMS if shutil.which(program) is None]:
        raise process.ServerError(f"{', '.join(missing)} not found: {_INSTALL}")
    monitor, port = process.free_port(HOST), process.free_port(HOST)
    with process.scratch("radosgw") as folder, ExitStack() as daemons:
        cluster = _Cluster(folder)
        cluster.configure(monitor, port)

        def start(name: str, command: list[str], ready: Callable[[], bool]) -> int:
            return daemons.enter_context(process.running(name, command, ready, folder=folder))

        cluster.make_monitor(monitor)
        start("ceph-mon", [*cluster.command("ceph-mon"), "-f", "-i", "a"], lambda: process.listens(HOST, monitor))
        cluster.make_disk()
        start("ceph-osd", [*cluster.command("ceph-osd"), "-f", "-i", "0"], cluster.disk_is_up)
        gateway = [*cluster.command("radosgw"), "-f", "-n", "client.rgw.a"]
        pid = start("radosgw", gateway, lambda: process.listens(HOST, port))
        cluster.make_user()
        yield S3Server("Ceph RGW", f"http://{HOST}:{port}", pid, ACCESS_KEY, SECRET_KEY)


class _Cluster:
    """The steps that make a cluster in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fsid = str(uuid.uuid4())

    def command(self, program: str) -> list[str]:
        return [program, "-c", str(self._folder / "ceph.conf")]

    def configure(self, monitor: int, port: int) -> None:
        for name in ("mon", "osd", "rgw", "run", "log", "crash"):
            (self._folder / name).mkdir()
        text = _CONFIGURATION.format(fsid=self._fsid, host=HOST, monitor=monitor, port=port, folder=self._folder)
        (self._folder / "ceph.conf").write_text(text)

    def make_monitor(self, port: int) -> None:
        monmap, keyring = str(self._folder / "monmap"), str(self._folder / "keyring")
        self._run("monmaptool", "--create", "--fsid", self._fsid, "--addv", "a", f"[v2:{HOST}:{port}]", monmap)
        self._run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        self._run(*self.command("ceph-mon"), "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)

    def make_disk(self) -> None:
        disk = str(uuid.uuid4())
        self._run(*self.command("ceph"), "osd", "new", disk)
        self._run(*self.command("ceph-osd"), "-i", "0", "--mkfs", "--osd-uuid", disk)

    def disk_is_up(self) -> bool:
        return "1 up" in self._run(*self.command("ceph"), "osd", "stat")

    def make_user(self) -> None:
        user = ["--uid=test", "--display-name=test", f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}"]
        self._run(*self.command("radosgw-admin"), "user", "create", *user)

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_STEP_LIMIT, check=False)
        if done.returncode:
            raise process.ServerError(f"{command[0]} ended with {done.returncode}:\n{done.stderr}")
        return done.stdout
