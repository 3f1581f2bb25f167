"""Questions about torch.distributed that are also answered when it is not in use."""

import torch.distributed as dist


def is_dist_avail_and_initialized() -> bool:
    """True once a process group exists; False in a build of torch without torch.distributed."""
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes in the default group, 1 when there is none."""
    return dist.get_world_size() if is_dist_avail_and_initialized() else 1
