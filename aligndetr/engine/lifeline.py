"""When one process of a run dies, the others learn of it, with its traceback, and end.

Without this they wait in a collective for a process that will never come, for as long as its
timeout: half an hour with NCCL. Each process holds a connection to rank 0, which the kernel closes
however the process ends; a machine that is gone is noticed by TCP's keep-alive. Nothing is sent
while all is well, so a process that is merely slow is never taken for dead.
"""

import contextlib
import faulthandler
import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from queue import Empty, Queue
from typing import Any

from detectron2.utils import comm

logger = logging.getLogger(__name__)

COLLECT = 2.0
"""Seconds after the first sign of trouble in which to look for its cause: a process that died
breaks the collectives of others, and their errors may arrive before."""
GRACE = 15.0
"""Seconds to end in an orderly way after that. Then the process ends wherever it is."""
ANSWER = 3 * COLLECT
OTHER_RANK_FAILED = 71
"""Exit code of processes that end because another has failed."""
_SOCKETS: weakref.WeakSet[socket.socket] = weakref.WeakSet()
"""All lifelines' sockets of this process, for forked children to close."""


@dataclass(frozen=True)
class Failure:
    """What ended the run: its rank and the traceback, or what is known instead of one."""

    rank: int
    text: str
    vanished: bool = False


class Lifeline:
    """This process's connection to rank 0, and on rank 0 also the place where all arrive.

    Made and closed by all processes together, after the process group.

    Args:
        host: rank 0's machine.
        several_machines: else only connections from this machine are accepted.
    """

    def __init__(self, host: str, several_machines: bool):
        self.failure: Failure | None = None
        self._known = threading.Event()
        self._closed = False
        self._watch: _Watch | None = None
        address = None
        if comm.is_main_process():
            server = socket.create_server(("" if several_machines else "127.0.0.1", 0))
            _SOCKETS.add(server)
            address = (server.getsockname()[1], secrets.token_hex(16))
            self._watch = _Watch(server, address[1])
            _in_background(self._watch.run)
        port, token = next(a for a in comm.all_gather(address) if a is not None)
        self._socket = socket.create_connection((host, port), timeout=30)
        self._socket.settimeout(None)
        _SOCKETS.add(self._socket)
        _keep_alive(self._socket)
        who = f"rank {comm.get_rank()} (process {os.getpid()} on {socket.gethostname()})"
        _send(self._socket, {"token": token, "rank": comm.get_rank(), "who": who})
        _in_background(self._listen)

    def report(self, text: str) -> Failure:
        """Tell the others why this process ends; what ended the run, which may be another's error.

        Args:
            text: the traceback.
        """
        _end_after(GRACE + ANSWER)
        _send(self._socket, {"text": text})
        self._known.wait(ANSWER)
        return self.failure or Failure(comm.get_rank(), text)

    def close(self) -> None:
        """Say that all is done, so that the end of the connection alarms nobody.

        Called when all have come so far; one that is slow to call it hears so from rank 0.
        """
        self._closed = True
        if self._watch is not None:
            self._watch.tell({"done": True})
        _send(self._socket, {"done": True})

    def _listen(self) -> None:
        message = next(_messages(self._socket), None)
        if self._closed or (message is not None and "done" in message):
            return
        if message is None:
            self.failure = Failure(0, "rank 0 ended without a word", vanished=True)
        else:
            self.failure = Failure(**message)
        _end_after(GRACE)
        if self.failure.rank != comm.get_rank() and comm.get_local_rank() == 0:
            logger.error("Rank %d failed, the run ends.\n%s", self.failure.rank, self.failure.text)
        self._known.set()


class _Watch:
    """On rank 0: waits for trouble from any process, finds the cause, and tells all."""

    def __init__(self, server: socket.socket, token: str):
        self._server = server
        self._token = token
        self._connections: list[socket.socket] = []
        self._told: list[dict] = []
        self._telling = threading.Lock()
        self._failures: Queue[Failure] = Queue()

    def run(self) -> None:
        _in_background(self._accept)
        failures = [self._failures.get()]
        deadline = time.monotonic() + COLLECT
        with contextlib.suppress(Empty):
            while True:
                failures.append(self._failures.get(timeout=max(0, deadline - time.monotonic())))
        # One that left no error was killed: that is a cause, never a consequence.
        cause = next((f for f in failures if f.vanished), failures[0])
        self.tell(asdict(cause))

    def tell(self, message: dict) -> None:
        """Send it to all, and to those that arrive later."""
        with self._telling:
            self._told.append(message)
            for connection in self._connections:
                _send(connection, message)

    def _accept(self) -> None:
        while True:
            connection, _ = self._server.accept()
            _SOCKETS.add(connection)
            _keep_alive(connection)
            _in_background(self._follow, connection)

    def _follow(self, connection: socket.socket) -> None:
        messages = _messages(connection)
        hello = next(messages, {})
        if hello.get("token") != self._token:
            connection.close()
            return
        with self._telling:
            self._connections.append(connection)
            for message in self._told:
                _send(connection, message)
        last = next(messages, None)
        if last is None:
            text = f"{hello['who']} ended without an error: killed, out of memory, or crashed"
            self._failures.put(Failure(hello["rank"], text, vanished=True))
        elif "text" in last:
            self._failures.put(Failure(hello["rank"], last["text"]))


def _send(connection: socket.socket, message: dict) -> None:
    with contextlib.suppress(OSError):  # the other end is gone, which its reader notices
        connection.sendall(json.dumps(message).encode() + b"\n")


def _leave_to_parent() -> None:
    """In a forked child: a connection ends when no process holds it any more."""
    for connection in _SOCKETS:
        if connection.fileno() >= 0:  # else closed
            os.close(connection.detach())  # `close` would wait for who reads from it


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_leave_to_parent)


def _messages(connection: socket.socket) -> Iterator[dict]:
    """One json object per line, until the connection ends, in whatever way."""
    with contextlib.suppress(OSError), connection.makefile("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):  # cut short
                return
            yield json.loads(line)


def _keep_alive(connection: socket.socket) -> None:
    """Have the kernel notice within a minute that the other machine is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # Linux; the names differ elsewhere
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _end_after(seconds: float) -> None:
    """End this process if it has not ended until then, and print where it was.

    A thread in C does it, which also works while Python waits in a collective, or is exiting.
    """
    output = sys.__stderr__ or sys.stderr  # the system's, even while a test takes the other
    faulthandler.dump_traceback_later(seconds, exit=True, file=output)


def _in_background(function: Callable, *args: Any) -> None:
    threading.Thread(target=function, args=args, daemon=True).start()
