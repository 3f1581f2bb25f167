"""How many CPU cores this process has."""

import os


def available_cores() -> int:
    """CPU cores this process may use; a container or a scheduler may grant fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
