"""The storage refuses: full, limited, forbidden, a file where a folder is needed, no O_DIRECT, a device that fails.

Each save fails with a class of ours that says what and where, older checkpoints load, and nothing stored is touched.
"""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import pytest

from s3dlio import CheckpointStore
from s3dlio.engine.errors import (
    AccessDeniedError,
    CheckpointNotFoundError,
    NotFoundError,
    StorageError,
    StorageFullError,
)
from tests.faults import places, states
from tests.faults.conftest import Open, Sabotaging, Scripting
from tests.faults.folders import contents, unfinished
from tests.faults.injected import Rule

SPACE = [
    Rule("StorePart", key="ckpt-2-", at="io", do=errno.ENOSPC),
    Rule("StorePart", key="ckpt-2-", at="io", do=errno.EDQUOT, skip=3),
    Rule("Complete", key="ckpt-2-", at="named", do=errno.ENOSPC),
    Rule("PutWhole", key="ckpt-2-", at="io", do=errno.ENOSPC),
    Rule("Call.put", key="ckpt-2-", at="io", do=errno.ENOSPC),
]
DEVICE = [
    Rule("StorePart", key="ckpt-2-", at="io", do=errno.EIO),
    Rule("StorePart", key="ckpt-2-", at="io", do=errno.EROFS),
    Rule("Call.put", key="ckpt-2-", at="io", do=errno.EIO),
]
EXPECTED = {errno.EIO: StorageError, errno.EROFS: AccessDeniedError}


def told(rule: Rule) -> str:
    return f"{rule.task}-{rule.at}-{errno.errorcode[int(rule.do)]}"


@pytest.mark.parametrize("rule", SPACE + DEVICE, ids=told)
def test_an_error_in_the_middle_of_a_save(
    sabotage: Sabotaging, open_store: Open, folder: Path, rule: Rule, caplog: pytest.LogCaptureFixture
) -> None:
    """It is raised and logged, names the file, and leaves the folder as it was; the next save works."""
    struck = sabotage(rule)
    with open_store(multipart_threshold=(64 << 20) * (rule.task == "PutWhole")) as store:
        store.save(1, states.make(1))
        before = contents(folder)
        with pytest.raises(EXPECTED.get(int(rule.do), StorageFullError), match="ckpt-2-"):
            store.save(2, states.make(2, 5))
        assert struck.struck() == 1
        assert contents(folder) == before
        assert "the save of ckpt-2-" in caplog.text
        assert states.same(store.load(), states.make(1))
        store.save(3, states.make(3))
        assert store.verify().ok


def test_an_error_while_the_manifest_is_stored(sabotage: Sabotaging, open_store: Open, folder: Path) -> None:
    """The shard is durable by then and stays for the clean-up; there is no checkpoint."""
    sabotage(Rule("Call.put", key="manifests/ckpt-2-", at="io", do=errno.ENOSPC))
    with open_store() as store:
        store.save(1, states.make(1))
        before = contents(folder)
        with pytest.raises(StorageFullError, match="manifests/ckpt-2-"):
            store.save(2, states.make(2))
        assert before.items() <= contents(folder).items()
        assert [info.step for info in store.list()] == [1]
        store.save(3, states.make(3))
        assert store.cleanup(min_age=0) == 2
        assert not list(folder.glob("**/ckpt-2-*"))
        assert unfinished(folder) == []


def test_an_error_while_the_pointer_is_moved(
    sabotage: Sabotaging, open_store: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """The manifest is the commit: the save has succeeded, and the log tells of the pointer."""
    sabotage(Rule("Call.put", key="manifests/latest.json", at="io", do=errno.ENOSPC, skip=1))
    with open_store() as store:
        store.save(1, states.make(1))
        assert store.save(2, states.make(2)).step == 2
        assert states.same(store.load(), states.make(2))
    assert "manifests/latest.json was not moved to ckpt-2-" in caplog.text


@pytest.mark.parametrize("task", ["StorePart", "Fetch"])
def test_a_passing_error_passes(sabotage: Sabotaging, open_store: Open, task: str) -> None:
    struck = sabotage(Rule(task, at="io", do=errno.EBUSY))
    with open_store() as store:
        store.save(1, states.make(1))
        assert states.same(store.load(), states.make(1))
    assert struck.struck() == 1


@pytest.mark.parametrize("how", ["load", "into", "names", "verify"])
def test_a_device_that_fails_while_loading(sabotage: Sabotaging, open_store: Open, how: str) -> None:
    sabotage(Rule("Fetch", at="io", do=errno.EIO, skip=1))
    state = states.make(1)
    with open_store() as store:
        store.save(1, state)
        options = {"into": {"into": states.zeroed(state)}, "names": {"names": "*"}}.get(how, {})
        with pytest.raises(StorageError, match=r"rank-0\.bin.*device failed"):
            store.verify() if how == "verify" else store.load(**options)
        assert states.same(store.load(), state)


FULL = """
    store = open_store(**ARGS["options"])
    from s3dlio.engine.errors import StorageFullError
    from tests.faults.folders import contents
    from pathlib import Path
    folder = Path(ARGS["folder"])
    store.save(1, states.make(1))
    before = contents(folder)
    try:
        store.save(2, states.noise(2, ARGS["mib"]))
    except StorageFullError as error:
        say(error)
    assert contents(folder) == before
    assert states.same(store.load(), states.make(1))
    assert store.verify().ok
    store.delete(1)
    store.save(3, states.make(3))
    assert states.same(store.load(), states.make(3))
    store.close()
    say("well")
"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["file", "direct"])
@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}, {"multipart_threshold": 64 << 20}], ids=str)
@pytest.mark.parametrize("disk", ["tmpfs", "ext4"])
def test_a_full_disk(
    script: Scripting, tmp_path: Path, folder: Path, disk: str, scheme: str, options: dict[str, object]
) -> None:
    """Told at the start where the size is known, in the middle where it is not; the space comes back."""
    prefix = places.mounted("tmpfs", folder) if disk == "tmpfs" else places.ext4(folder, tmp_path / "image")
    mib = 9 if disk == "tmpfs" else 22
    options = {"memory": 64 << 20, **options}
    trainer = script(FULL, scheme=scheme, prefix=prefix, options=options, mib=mib, folder=str(folder))
    assert "ckpt-2-" in (told := trainer.line()), told
    assert "free space" in told
    assert trainer.line() == "well"
    assert trainer.end() == 0, trainer.errors


LIMITED = """
    import resource
    limit = 8 * states.MIB
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    store = open_store(compression=ARGS["compression"])
    from s3dlio.engine.errors import MemoryLimitError, StorageFullError
    try:
        store.save(2, states.noise(2, 12))
    except StorageFullError as error:
        say(error)
    assert states.same(store.load(), states.make(1, 12))  # lands in several files, each within the limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (states.MIB, limit))
    try:
        store.load()
    except MemoryLimitError as error:
        say(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    target = states.zeroed(states.make(1, 12))
    assert states.same(store.load(into=target), states.make(1, 12))
    store.save(3, states.make(3))
    assert states.same(store.load(), states.make(3))
    store.close()
    say("well")
"""


@pytest.mark.slow
@pytest.mark.parametrize("compression", [None, "zstd-grouped"])
def test_a_limit_of_file_sizes(open_store: Open, script: Scripting, folder: Path, compression: str | None) -> None:
    """It binds the arena and the memory of a load too, which are files without a name."""
    with open_store(workers=1) as store:
        store.save(1, states.make(1, 12))
        before = contents(folder)
        trainer = script(LIMITED, compression=compression)
        assert "file-size limit" in trainer.line()
        assert "limit" in trainer.line()
        assert trainer.line() == "well"
        assert trainer.end() == 0, trainer.errors
        after = contents(folder)
        assert {name: after[name] for name in before if "latest" not in name}.items() <= before.items()
        assert not [name for name in after if "ckpt-2-" in name]


DENIED = """
    from s3dlio.engine.errors import AccessDeniedError
    store = open_store()
    assert states.same(store.load(), states.make(1))
    try:
        store.save(2, states.make(2))
    except AccessDeniedError as error:
        say(error)
    assert states.same(store.load(), states.make(1))
    assert store.latest().step == 1
    try:
        store.prune(keep_last=1)
        ARGS["delete"] and store.delete(1)
    except AccessDeniedError as error:
        say(error)
    assert states.same(store.load(1), states.make(1))
    store.close()
    say("well")
"""


@pytest.mark.slow
@pytest.mark.parametrize("closed", [".", "shards", "manifests", "read-only mount"])
def test_no_permission_to_write(open_store: Open, script: Scripting, folder: Path, closed: str) -> None:
    with open_store(workers=1) as store:
        store.save(1, states.make(1))
    before = contents(folder)
    prefix = places.without_root_powers
    if closed == "read-only mount":
        prefix = places.read_only(folder)
    else:
        folders = [folder, *folder.glob("**/")] if closed == "." else [folder / closed]
        for each in folders:
            each.chmod(0o555)
    delete = closed != "shards"  # there it would be allowed: the folder of the checkpoint itself is open
    trainer = script(DENIED, prefix=prefix, delete=delete)
    assert "ckpt-2-" in trainer.line()
    if delete:
        assert str(folder) in trainer.line()
    assert trainer.line() == "well"
    assert trainer.end() == 0, trainer.errors
    for each in [folder, *folder.glob("**/")]:
        each.chmod(0o755)
    assert before.items() <= contents(folder).items()
    assert unfinished(folder) == []


UNREADABLE = """
    from s3dlio.engine.errors import AccessDeniedError
    store = open_store()
    for ask in (store.load, store.verify, lambda: store.load(names="*")):
        try:
            ask()
        except AccessDeniedError as error:
            say(error)
    store.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["**/rank-0.bin", "**/rank-0.idx", "manifests/ckpt-*", "manifests"])
def test_no_permission_to_read(open_store: Open, script: Scripting, folder: Path, pattern: str) -> None:
    """Never taken for an empty store."""
    with open_store(workers=1) as store:
        store.save(1, states.make(1))
    (closed,) = folder.glob(pattern)
    mode = closed.stat().st_mode
    closed.chmod(0)
    trainer = script(UNREADABLE, prefix=places.without_root_powers)
    for _ in range(3):
        assert str(closed) in trainer.line()
    assert trainer.end() == 0, trainer.errors
    closed.chmod(mode)


@pytest.mark.parametrize("below", ["", "/sub"])
def test_the_path_is_a_file(tmp_path: Path, below: str) -> None:
    """Saving, loading and listing say so; the file stays."""
    path = tmp_path / "file"
    path.write_text("precious")
    with CheckpointStore(f"file://{path}{below}", workers=1, memory=32 << 20) as store:
        for ask in (lambda: store.save(1, b"payload"), store.load, store.list, store.verify):
            with pytest.raises(StorageError, match=str(path)) as raised:
                ask()
            assert not isinstance(raised.value, NotFoundError)
    assert path.read_text() == "precious"


def test_an_absent_folder_is_an_empty_store(open_store: Open, folder: Path) -> None:
    with open_store(workers=1) as store:
        assert store.list() == []
        assert store.latest() is None
        with pytest.raises(CheckpointNotFoundError, match="no committed checkpoint"):
            store.load()
    assert not folder.exists()


REFUSED = """
    import logging
    heard = []
    class Ear(logging.Handler):
        def emit(self, record):
            heard.append(record.getMessage())
    logging.getLogger("s3dlio").addHandler(Ear())
    with open_store() as store:
        for step in (1, 2, 3):
            store.save(step, states.make(step))
        assert states.same(store.load(), states.make(3))
        assert store.verify().ok
    say(len([text for text in heard if "O_DIRECT" in text]))
    say(*heard)
"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["direct", "file"])
def test_a_file_system_without_o_direct(script: Scripting, folder: Path, scheme: str) -> None:
    """``direct`` tells once that it goes through the page cache; ``file`` never promised not to."""
    trainer = script(REFUSED, scheme=scheme, prefix=places.mounted("ramfs", folder))
    assert trainer.line() == ("1" if scheme == "direct" else "0")
    assert trainer.end() == 0, trainer.errors
    assert (str(folder) in trainer.output) == (scheme == "direct")


def test_o_direct_refused_in_the_middle(
    sabotage: Sabotaging, open_store: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """Some file systems take the flag and refuse a write."""
    struck = sabotage(Rule("StorePart", at="io", do=errno.EINVAL))
    with caplog.at_level(logging.WARNING), open_store(scheme="direct", workers=1) as store:
        store.save(1, states.make(1))
        assert states.same(store.load(), states.make(1))
    assert struck.struck() == 1
    assert caplog.text.count("refuses O_DIRECT") == 1
