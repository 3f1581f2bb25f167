"""Where the processes of one start of torchrun find each other, and not those of the start before.

torchrun keeps its store when it restarts processes, addresses of the dead ones included, and
process groups would connect to those. Its count of restarts is no help in telling starts apart:
each machine counts its own. So rank 0 draws a name for every start.
"""

import time
import uuid
from datetime import timedelta

from torch.distributed import PrefixStore, Store


def fresh_store(store: Store, rank: int, world_size: int, timeout: timedelta) -> Store:
    """A part of `store` that is empty and the same for all ranks of this start.

    A collective. What earlier starts have left in `store` may be anything.

    Raises:
        TimeoutError: on rank 0, if others do not come. (Their own store operations time out.)
    """
    if rank > 0:
        me = uuid.uuid4().hex  # rank 0 may first find the name of this rank's predecessor
        store.set(f"aligndetr/rank{rank}", me)
        name = store.get(f"aligndetr/start of {me}").decode()
        store.add(f"aligndetr/came to {name}", 1)
        return PrefixStore(name, store)
    name, told = uuid.uuid4().hex, set()
    deadline = time.monotonic() + timeout.total_seconds()
    while store.add(f"aligndetr/came to {name}", 0) < world_size - 1:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all of {world_size} processes came within {timeout}")
        for other in range(1, world_size):
            key = f"aligndetr/rank{other}"
            if store.check([key]) and (who := store.get(key).decode()) not in told:
                store.set(f"aligndetr/start of {who}", name)
                told.add(who)
        time.sleep(0.05)
    return PrefixStore(name, store)
