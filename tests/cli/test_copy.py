"""``s3dlio copy`` on stores in folders, and the options of object stores that all commands take."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from s3dlio import CheckpointStore, cli
from s3dlio.cli.store_options import given, pair
from tests.cli.conftest import Answer
from tests.cli.fakes import FakeStore
from tests.store.live import contents, keeping_pool, open_store, random_bytes

MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def kept_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CheckpointStore]:
    """Keeps the pool that the stores of the tests share."""
    with keeping_pool(tmp_path_factory.mktemp("keeper")) as store:
        yield store


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """``run(*arguments)``: the command line, whose stores share the kept pool."""
    monkeypatch.setattr(cli, "open_store", lambda uri: open_store(Path(uri.removeprefix("file://"))))

    def call(*arguments: str) -> Answer:
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A store of three checkpoints."""
    with open_store(tmp_path / "source") as store:
        for step in (10, 30, 20):
            store.save(step, random_bytes(2 * MIB, step))
    return str(tmp_path / "source")


def steps(folder: Path) -> list[int]:
    with open_store(folder) as store:
        return [info.step for info in store.list()]


@pytest.mark.parametrize(
    ("arguments", "copied"), [((), [20]), (("30",), [30]), (("--all",), [10, 30, 20])], ids=["newest", "step", "all"]
)
def test_copy(run: Any, source: str, tmp_path: Path, arguments: tuple[str, ...], copied: list[int]) -> None:
    target = tmp_path / "target"
    answer = run("copy", source, str(target), *arguments)
    assert (answer.code, answer.err) == (0, "")
    head, _, *rows = (line.split() for line in answer.out.splitlines())
    assert head == ["step", "shards", "copied"]
    assert rows == [[str(step), "1", "2.1", "MB", "ok"] for step in copied]
    assert steps(target) == copied
    there = contents(target)
    assert all(there[key] == data for key, data in contents(Path(source)).items() if key in there and "ckpt" in key)


def test_copy_json(run: Any, source: str, tmp_path: Path) -> None:
    target = f"file://{tmp_path}/target"
    value = json.loads(run("copy", source, target, "--all", "--json").out)
    assert (value["from"], value["to"], value["ok"]) == (f"file://{source}", target, True)
    assert [(each["step"], each["shards"], each["bytes"]) for each in value["checkpoints"]] == [
        (step, 1, 2 * MIB) for step in (10, 30, 20)
    ]
    assert all(each["ok"] and each["error"] is None and each["id"] for each in value["checkpoints"])


def test_one_that_is_damaged_does_not_hide_the_others(run: Any, source: str, tmp_path: Path) -> None:
    (shard,) = Path(source).glob("shards/ckpt-30-*/rank-0.bin")
    shard.write_bytes(bytes(2 * MIB))
    (manifest,) = Path(source).glob("manifests/ckpt-10-*.json")
    manifest.write_bytes(b"torn")
    target = tmp_path / "target"
    answer = run("copy", source, str(target), "--all")
    assert answer.code == 1
    assert [line.split()[-2:] for line in answer.out.splitlines()[2:]] == [
        ["NOT", "COPIED"],
        ["NOT", "COPIED"],
        ["MB", "ok"],
    ]
    first, second = [line for line in answer.err.splitlines() if line.startswith("s3dlio: error: ")]
    assert first.startswith("s3dlio: error: step 10: manifests/ckpt-10-")
    assert "rank-0.bin is not what was saved" in second
    assert steps(target) == [20]
    value = json.loads(run("copy", source, str(target), "--all", "--json").out)
    assert [each["ok"] for each in value["checkpoints"]] == [False, False, True]
    assert not value["ok"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("SOURCE", "SOURCE"), "are the same place"),
        (("EMPTY", "TARGET"), "no committed checkpoint in file://"),
        (("EMPTY", "TARGET", "--all"), "nothing to copy"),
        (("SOURCE", "TARGET", "11"), "no committed checkpoint of step 11"),
    ],
)
def test_what_cannot_be_copied(run: Any, source: str, tmp_path: Path, arguments: Sequence[str], text: str) -> None:
    places = {"SOURCE": source, "EMPTY": str(tmp_path / "empty"), "TARGET": str(tmp_path / "target")}
    answer = run("copy", *(places.get(each, each) for each in arguments))
    assert (answer.code, answer.out) == (1, "")
    assert text in answer.err
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "target").exists()


def test_the_bar_goes_to_the_end(run: Any, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[float, float]] = []
    monkeypatch.setattr("s3dlio.cli.copy.Bar.show", lambda self, done, total, note="": shown.append((done, total)))
    assert run("copy", source, str(tmp_path / "target"), "--all").code == 0
    assert [done for done, _ in shown] == sorted(done for done, _ in shown)
    assert shown[-1] == (6 * MIB, 6 * MIB)


@pytest.mark.parametrize("arguments", [("a",), ("a", "b", "-1"), ("a", "b", "1", "--all"), ("a", "b", "1", "2")])
def test_wrong_usage(run: Any, arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("copy", *arguments)
    assert caught.value.code == 2


# options of object stores


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("region=eu-central-1", ("region", "eu-central-1")),
        ("endpoint-url=http://127.0.0.1:9000/?a=b", ("endpoint_url", "http://127.0.0.1:9000/?a=b")),
        ("anonymous=TRUE", ("anonymous", True)),
        ("verify=false", ("verify", False)),
        ("retry_deadline=30", ("retry_deadline", 30)),
        ("storage_class=", ("storage_class", "")),
        ("kms_key_id=12-3", ("kms_key_id", "12-3")),
    ],
)
def test_an_option(text: str, expected: tuple[str, Any]) -> None:
    name, value = pair(text)
    assert (name, value, type(value)) == (*expected, type(expected[1]))


def test_of_two_options_of_one_name_the_last_counts() -> None:
    assert given([("region", "a"), ("verify", True)], [("region", "b")]) == {"region": "b", "verify": True}


@pytest.mark.parametrize("flag", ["--option", "--from-option", "--to-option"])
@pytest.mark.parametrize(
    "name",
    [
        "secret_access_key",
        "access_key_id",
        "session-token",
        "account_key",
        "sas_token",
        "connection_string",
        "PASSWORD",
    ],
)
def test_credentials_are_refused_and_not_shown(name: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["copy", "s3://bucket/a", "s3://bucket/b", flag, f"{name}=hush"])
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert "is a credential" in told
    assert "environment" in told
    assert "hush" not in told


@pytest.mark.parametrize("text", ["region", "=x", "a b=c", "9=x", "ä=x"])
def test_what_is_no_option(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["ls", "s3://bucket", "--option", text])
    assert "write NAME=VALUE" in capsys.readouterr().err


class Told:
    """``open_store`` that notes what it was given; the stores are fakes of one checkpoint."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, Any]] = []

    def __call__(self, uri: str, options: Any = None) -> Any:
        self.opened.append((uri, options))
        return FakeStore(1, payload=b"\2\0\0\0\0\0\0\0{}")(uri)


@pytest.mark.parametrize("verb", ["ls", "show", "verify", "delete", "export"])
def test_options_reach_the_store(verb: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = Told()
    monkeypatch.setattr(cli, "open_store", told)
    rest = {"delete": ["1", "--yes"], "export": ["1", str(tmp_path / "x.safetensors")]}.get(verb, [])
    assert cli.main([verb, "s3://bucket/run", *rest, "--option", "region=x", "--option", "verify=false"]) == 0
    assert told.opened == [("s3://bucket/run", {"region": "x", "verify": False})]
    assert cli.main(["ls", "s3://bucket/run"]) == 0
    assert told.opened[-1] == ("s3://bucket/run", None)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("s3://a", "s3://b", [{"region": "both", "verify": False}, {"region": "to"}]),
        ("file:///a", "s3://b", [{"verify": False}, {"region": "to"}]),
        ("s3://a", "direct:///b", [{"region": "both", "verify": False}, {"region": "to"}]),
    ],
)
def test_options_of_either_end(source: str, target: str, expected: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    monkeypatch.setattr(cli, "open_store", told)
    monkeypatch.setattr("s3dlio.copying.copy_checkpoint", lambda source, target, **_: source.infos[0])
    options = ["--option", "region=both", "--from-option", "verify=false", "--to-option", "region=to"]
    assert cli.main(["copy", source, target, *options]) == 0
    assert told.opened == list(zip([source, target], expected, strict=True))


def test_a_folder_takes_no_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ls", str(tmp_path), "--option", "region=x"]) == 1
    assert "takes no options" in capsys.readouterr().err


@pytest.mark.slow
def test_an_s3_store_by_the_command_line(
    s3_bucket: Any, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = dict(s3_bucket.options)
    for name in ("access_key_id", "secret_access_key"):
        monkeypatch.setenv(f"AWS_{name.upper()}", plain.pop(name))
    options = [word for name, value in plain.items() for word in ("--option", f"{name}={value}")]
    uri = f"{s3_bucket.uri}/run"
    assert cli.main(["copy", source, uri, "--all", *options]) == 0
    assert cli.main(["verify", uri, *options]) == 0
    capsys.readouterr()
    assert cli.main(["ls", uri, "--json", *options]) == 0
    assert [each["step"] for each in json.loads(capsys.readouterr().out)["checkpoints"]] == [10, 30, 20]
    assert cli.main(["copy", uri, str(tmp_path / "back"), "30", *options]) == 0
    with open_store(tmp_path / "back") as store:
        assert store.load() == random_bytes(2 * MIB, 30)
