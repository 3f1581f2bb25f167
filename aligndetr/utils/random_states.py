"""The random generators of a process: read, set, seeded for a moment, kept from being used.

These are the global generators of Python, numpy and torch (CPU, and one CUDA device).
"""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def get_random_states(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The states as tensors and numbers, so that a checkpoint can hold them.

    Args:
        device: where the model is; a CUDA device has a generator of its own.
    """
    version, words, gauss = random.getstate()
    of_numpy: Any = np.random.get_state()
    _, keys, position, has_gauss, cached = of_numpy
    states = {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.device(device).type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
    """Go on from what `get_random_states` gave; "cuda" is left out where it is not in `states`."""
    version, words, gauss = states["python"]
    keys, position, has_gauss, cached = states["numpy"]
    random.setstate((version, tuple(words.tolist()), gauss))
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"].cpu())
    if torch.device(device).type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)


@contextmanager
def preserved_random_states(device: torch.device | str = "cpu") -> Iterator[None]:
    """After the block the generators are as they were before it."""
    states = get_random_states(device)
    try:
        yield
    finally:
        set_random_states(states, device)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Within the block the CPU generators are seeded by `numbers`; after it, as they were before.

    Args:
        numbers: non-negative; each tuple of them gives streams that are independent of all
            others (numpy's SeedSequence mixes them).
    """
    words = np.random.SeedSequence(numbers).generate_state(6, np.uint32)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words[2:4])
    # torch.manual_seed would seed the GPUs as well.
    torch.default_generator.manual_seed(int(words[4]) << 32 | int(words[5]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
