"""How the tensors of a data loading worker reach its parent: large ones through shared memory, as
torch does, small ones within the message.

Each shared tensor is an open file of the parent's, which it asks the worker for, and a worker busy
with the next image takes milliseconds to answer. Boxes and classes are not worth that.
"""

import multiprocessing.reduction

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

SMALL = 65_536  # bytes: what Linux's pipes hold
DTYPES = {torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64}


def send_small_tensors_by_value(_worker_id: int = 0) -> None:
    """To be called in a worker (`worker_init_fn` of a DataLoader)."""
    multiprocessing.reduction.register(Tensor, _reduce)


def _reduce(tensor: Tensor) -> tuple:
    is_plain = tensor.layout is torch.strided and tensor.dtype in DTYPES
    if not is_plain or tensor.requires_grad or tensor.is_cuda or tensor.nbytes > SMALL:
        return reduce_tensor(tensor)
    return torch.from_numpy, (tensor.numpy(),)
