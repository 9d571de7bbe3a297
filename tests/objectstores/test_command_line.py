"""The command line on object stores, which it finds as a user names them: by URI, and the rest in the environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from s3dlio import cli
from tests.faults import states
from tests.objectstores.checks import old
from tests.objectstores.places import SMALL, Place
from tests.store.live import open_store

pytestmark = pytest.mark.slow

VARIABLES = {
    "access_key_id": "AWS_ACCESS_KEY_ID",
    "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "region": "AWS_DEFAULT_REGION",
    "account_key": "AZURE_STORAGE_KEY",
}
ENDPOINTS = {"s3": "AWS_ENDPOINT_URL_S3", "az": "AZURE_STORAGE_ENDPOINT"}


@pytest.fixture(autouse=True)
def environment(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    options = dict(place.options)
    monkeypatch.setenv(ENDPOINTS[place.kind], options.pop("endpoint_url"))
    for name, value in options.items():
        monkeypatch.setenv(VARIABLES[name], value)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """What a command that succeeds tells a machine."""
    code = cli.main([*words, "--json"])
    told = capsys.readouterr()
    assert (code, told.err) == (0, "")
    return json.loads(told.out)


def test_every_command(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_store(tmp_path / "here", **SMALL) as store:
        for step in (1, 2):
            store.save(step, old())
    here, there, back = str(tmp_path / "here"), place.uri, str(tmp_path / "back")
    assert run(capsys, "copy", here, there, "--all")["ok"]
    assert [each["step"] for each in run(capsys, "ls", there)["checkpoints"]] == [1, 2]
    assert run(capsys, "show", there, "1")["step"] == 1
    assert run(capsys, "verify", there)["ok"]
    assert run(capsys, "copy", there, back, "1")["ok"]
    run(capsys, "delete", there, "1", "--yes")
    assert [each["step"] for each in run(capsys, "ls", there)["checkpoints"]] == [2]
    with open_store(tmp_path / "back", **SMALL) as store:
        assert states.same(store.load(1), old())


@pytest.mark.timeout(600)  # trainers import torch three times, which alone takes a minute on a busy machine
@pytest.mark.parametrize("site", ["s3"], indirect=True)
def test_the_demo(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Real training, death in the middle of a save, and a resume; no other test has all of it on an object store."""
    report = run(capsys, "demo", place.uri, "--size", "tiny", "--steps", "12")
    assert report["equal"]
    assert report["resumed_from"] is not None
    assert [each["step"] for each in run(capsys, "ls", report["store"])["checkpoints"]] == [4, 8, 12]
