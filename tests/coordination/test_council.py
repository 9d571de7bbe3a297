from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.coordination import council as councils
from s3dlio.coordination.board import PIECE, drop_word, get_word, put_word
from s3dlio.coordination.council import Council, name_ranks
from s3dlio.engine.errors import DeadlineError
from tests.coordination.boards import FakeBoard, boards


def seats(world_size: int, timeout: float = 10.0) -> list[Council]:
    return [Council(board, "store", timeout) for board in boards(world_size)[1]]


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
def test_a_word_of_any_size_comes_whole_and_leaves_nothing(size: int) -> None:
    hall, (board, _) = boards(2)
    word = bytes(range(256)) * (size // 256) + bytes(size % 256)
    pieces = put_word(board, "key", word)
    assert pieces == max(1, -(-size // PIECE))
    assert all(len(value) <= PIECE + 4 for value in hall.values.values())
    assert get_word(board, "key", 0) == word
    assert get_word(board, "key", 0, last=True) == word
    assert hall.values == {}
    put_word(board, "key", word)
    drop_word(board, "key", pieces)
    assert hall.values == {}


def test_a_word_that_does_not_come_is_none() -> None:
    _, (board, _) = boards(2)
    assert get_word(board, "key", 0.001) is None
    put_word(board, "key", bytes(3 * PIECE))
    board.drop("key/2")
    board.get = lambda key, timeout: FakeBoard.get(board, key, 0)  # type: ignore[method-assign]
    assert get_word(board, "key", 0.001) is None


def test_ranks_speak_and_hear() -> None:
    members = seats(3)

    def attend(council: Council) -> bytes:
        council.say("topic", f"from {council.rank}".encode())
        if council.presides:
            words = dict(council.gather("topic", range(3)))
            council.announce("topic", b" ".join(words[rank] for rank in range(3)))
        return council.hear("topic")

    with ThreadPoolExecutor(3) as pool:
        heard = list(pool.map(attend, members))
    assert heard == [b"from 0 from 1 from 2"] * 3
    assert [council.presides for council in members] == [True, False, False]


def test_who_is_missing_is_named() -> None:
    first, _, third, _ = seats(4, timeout=0.01)
    third.say("topic", b"")
    with pytest.raises(
        DeadlineError, match=r"store: topic: nothing was heard from ranks 1, 3 of 4 ranks within 0.01 s"
    ):
        list(first.gather("topic", range(1, 4)))


def test_rank_0_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, second = seats(2, timeout=0.01)
    monkeypatch.setattr(councils, "GRACE", 0.0)
    with pytest.raises(DeadlineError, match="rank 0 has announced nothing within"):
        second.hear("topic")


def test_the_board_does_not_grow_with_the_number_of_topics() -> None:
    hall, (board, other) = boards(2)
    first, second = Council(board, "store", 1.0), Council(other, "store", 1.0)
    for number in range(3 * councils.KEPT):
        second.say(f"save-{number}", bytes(2 * PIECE))
        list(first.gather(f"save-{number}", [1]))
        first.announce(f"save-{number}", b"done")
    assert len(hall.values) == councils.KEPT
    assert second.hear(f"save-{3 * councils.KEPT - 1}") == b"done"


def test_stores_do_not_hear_each_other() -> None:
    _, (board, _) = boards(2)
    for name in ("a", "b"):
        Council(board, name, 1.0).announce("save-0", name.encode())
    assert [Council(board, name, 1.0).hear("save-0") for name in ("a", "b")] == [b"a", b"b"]


@given(st.lists(st.integers(0, 1 << 17), min_size=1, max_size=40, unique=True))
def test_names_of_ranks_are_short(ranks: list[int]) -> None:
    told = name_ranks(ranks)
    assert told.startswith("rank")
    assert str(ranks[0]) in told
    assert len(told) < 20 * 8 + 30
    assert ("more" in told) == (len(ranks) > 20)
