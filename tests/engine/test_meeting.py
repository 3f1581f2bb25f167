"""Processes that are started again do not meet the addresses of the dead."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from aligndetr.engine.meeting import fresh_store

SECONDS = timedelta(seconds=20)


@pytest.fixture
def server():
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=SECONDS)


def start(server, world_size):
    """All ranks of one start meet; rank 0 leaves its address, which the others read."""

    def meet(rank):
        own = TCPStore("127.0.0.1", server.port, is_master=False, timeout=SECONDS)
        store = fresh_store(own, rank, world_size, SECONDS)
        before = store.check(["address"]) if rank == 0 else None
        if rank == 0:
            store.set("address", f"of {world_size}")
        return before, store.get("address")

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(meet, range(world_size)))


def test_every_start_meets_apart_and_all_of_it_together(server):
    for world_size in (3, 3, 2, 4):  # machines may come and go
        (before, _), *_ = found = start(server, world_size)
        assert before is False
        assert {address for _, address in found} == {f"of {world_size}".encode()}


def test_a_rank_that_does_not_come_is_an_error(server):
    with pytest.raises(TimeoutError, match="not all of 2 processes"):
        fresh_store(server, 0, 2, timedelta(seconds=0.2))
