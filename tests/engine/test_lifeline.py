"""What arrives at rank 0 from the processes of a run, and from anybody else."""

import multiprocessing
import os
import signal
import socket
import time

import pytest
from detectron2.utils import comm

from aligndetr.engine import lifeline
from aligndetr.engine.lifeline import Lifeline, _messages, _Watch


@pytest.fixture
def ends():
    """Both ends of a connection."""
    here, there = socket.socketpair()
    yield here, there
    here.close()
    there.close()


def test_a_message_that_is_cut_short_is_none(ends):
    ends[0].sendall(b'{"rank": 1}\n{"rank": 2')
    ends[0].close()
    assert list(_messages(ends[1])) == [{"rank": 1}]


@pytest.mark.parametrize("hello", [b'{"token": "guessed"}\n', b"{}\n", b""])
def test_who_does_not_know_the_token_is_not_heard(ends, hello):
    watch = _Watch(ends[1], "token")
    ends[0].sendall(hello + b'{"text": "a lie"}\n')
    ends[0].shutdown(socket.SHUT_WR)
    watch._follow(ends[1])
    assert watch._failures.empty()
    assert watch._connections == []
    assert ends[0].recv(1) == b""  # closed


def test_who_ends_without_a_word_has_vanished(ends):
    watch = _Watch(ends[1], "token")
    ends[0].sendall(b'{"token": "token", "rank": 3, "who": "rank 3"}\n')
    ends[0].close()
    watch._follow(ends[1])
    failure = watch._failures.get_nowait()
    assert (failure.rank, failure.vanished) == (3, True)
    assert failure.text.startswith("rank 3 ended without an error")


def test_who_arrives_late_hears_what_was_told(ends):
    watch = _Watch(ends[1], "token")
    watch.tell({"rank": 1})
    ends[0].sendall(b'{"token": "token", "rank": 0, "who": "rank 0"}\n{"done": true}\n')
    watch._follow(ends[1])
    assert next(_messages(ends[0])) == {"rank": 1}


def test_the_end_of_rank_0_alarms_nobody_who_is_slow_to_close(ends, monkeypatch):
    monkeypatch.setattr(lifeline, "_end_after", lambda _: pytest.fail("took the end for a failure"))
    watch = _Watch(ends[1], "token")
    watch._connections.append(ends[1])
    slow = Lifeline.__new__(Lifeline)
    slow.failure, slow._closed, slow._socket = None, False, ends[0]
    watch.tell({"done": True})
    ends[1].close()
    slow._listen()
    assert slow.failure is None


def die_before_a_child(port):
    """As rank 1 that has a data loading worker."""
    os.setsid()
    comm.is_main_process = lambda: False
    comm.all_gather = lambda _: [(port, "token")]
    Lifeline("127.0.0.1", several_machines=False)
    if os.fork() == 0:
        time.sleep(600)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_forked_child_does_not_hide_that_its_parent_has_vanished():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        port = server.getsockname()[1]
        context = multiprocessing.get_context("fork")
        process = context.Process(target=die_before_a_child, args=(port,))
        process.start()
        connection, _ = server.accept()
    with connection:
        connection.settimeout(30)
        try:
            while connection.recv(1000):  # until it has ended
                pass
        finally:
            process.join()
            os.killpg(process.pid, signal.SIGKILL)
