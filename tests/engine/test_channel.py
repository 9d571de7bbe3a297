from __future__ import annotations

import os
import pickle
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from s3dlio.engine.channel import Channel, ChannelClosed

Pair = tuple[Channel, Channel]


@pytest.fixture
def pair() -> Iterator[Pair]:
    left, right = socket.socketpair()
    channels = Channel(left, send_timeout=5.0), Channel(right, send_timeout=5.0)
    yield channels
    for channel in channels:
        channel.close()


@pytest.fixture
def wire() -> Iterator[tuple[socket.socket, Channel]]:
    raw, end = socket.socketpair()
    channel = Channel(end)
    yield raw, channel
    channel.close()
    raw.close()


def receive(channel: Channel, count: int) -> list[tuple[object, tuple[int, ...]]]:
    found: list[tuple[object, tuple[int, ...]]] = []
    while len(found) < count:
        found += channel.receive()
    assert len(found) == count
    return found


def frame(message: object, fds: int = 0) -> bytes:
    body = pickle.dumps(message)
    return struct.pack("<IH", len(body), fds) + body


def test_messages_arrive_in_order(pair: Pair) -> None:
    for number in range(20):
        pair[0].send(("message", number))
    assert receive(pair[1], 20) == [(("message", number), ()) for number in range(20)]


def test_a_message_may_arrive_byte_by_byte(wire: tuple[socket.socket, Channel]) -> None:
    raw, channel = wire
    data = frame("first") + frame("second")
    found = []
    for position in range(len(data)):
        raw.send(data[position : position + 1])
        found += channel.receive()
    assert found == [("first", ()), ("second", ())]


def test_a_message_larger_than_the_socket_holds(pair: Pair) -> None:
    body = os.urandom(8 << 20)
    sender = threading.Thread(target=pair[0].send, args=(body,))
    sender.start()
    assert receive(pair[1], 1) == [(body, ())]
    sender.join()


def test_messages_of_several_threads_do_not_mix(pair: Pair) -> None:
    bodies = [bytes([number]) * 300_000 for number in range(8)]
    senders = [threading.Thread(target=pair[0].send, args=(body,)) for body in bodies]
    for sender in senders:
        sender.start()
    assert sorted(receive(pair[1], 8)) == [(body, ()) for body in bodies]
    for sender in senders:
        sender.join()


def test_descriptors_arrive_with_their_message(pair: Pair) -> None:
    pipes = [os.pipe() for _ in range(3)]
    pair[0].send("none")
    pair[0].send("one", [pipes[0][0]])
    pair[0].send("between")
    pair[0].send("two", [pipes[1][0], pipes[2][0]])
    found = receive(pair[1], 4)
    assert [(message, len(fds)) for message, fds in found] == [("none", 0), ("one", 1), ("between", 0), ("two", 2)]
    arrived = [fd for _, fds in found for fd in fds]
    for number, (fd, (_, write)) in enumerate(zip(arrived, pipes, strict=True)):
        assert not os.get_inheritable(fd)
        os.write(write, bytes([number]))
        assert os.read(fd, 1) == bytes([number])
    for fd in arrived + [fd for pipe in pipes for fd in pipe]:
        os.close(fd)


def test_a_descriptor_that_comes_before_its_message_is_complete(wire: tuple[socket.socket, Channel]) -> None:
    raw, channel = wire
    read, write = os.pipe()
    data = frame("late", fds=1)
    socket.send_fds(raw, [data[:3]], [read])
    assert channel.receive() == []
    raw.send(data[3:])
    ((message, (fd,)),) = channel.receive()
    assert message == "late"
    for each in (fd, read, write):
        os.close(each)


def test_descriptors_of_an_unfinished_message_are_closed(wire: tuple[socket.socket, Channel]) -> None:
    raw, channel = wire
    read, write = os.pipe()
    socket.send_fds(raw, [b"\0"], [write])
    os.close(write)
    assert channel.receive() == []
    channel.close()
    assert os.read(read, 1) == b""  # nobody holds the writing end any more
    os.close(read)


def test_the_end_is_told(pair: Pair) -> None:
    pair[0].send("last")
    pair[0].close()
    assert receive(pair[1], 1) == [("last", ())]
    with pytest.raises(ChannelClosed, match="end of file"):
        pair[1].receive()
    with pytest.raises(ChannelClosed):
        pair[1].send("nobody")


def test_a_closed_channel_sends_and_receives_nothing(pair: Pair) -> None:
    pair[0].close()
    with pytest.raises(ChannelClosed):
        pair[0].send("x")
    with pytest.raises(ChannelClosed):
        pair[0].receive()


@pytest.mark.parametrize("fds", [(), (0,)])
def test_who_does_not_read_counts_as_gone(fds: tuple[int, ...]) -> None:
    left, right = socket.socketpair()
    channel = Channel(left, send_timeout=0.01)
    with pytest.raises(ChannelClosed, match="timed out"):
        channel.send(bytes(4 << 20), fds)
    channel.close()
    right.close()


def test_what_cannot_be_sent_leaves_the_channel_usable(pair: Pair) -> None:
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        pair[0].send(threading.Lock())
    pair[0].send("fine")
    assert receive(pair[1], 1) == [("fine", ())]
