"""The two products with a sparse matrix in `embedding_bag`'s backward pass.

torch multiplies sparse matrices by MKL. Builds without it (ARM, macOS) gather rows here, and take
scipy's product.

Shapes: n bags of as many rows each, R rows of a table, D numbers in a row.
"""

import functools
import warnings

import torch
from torch import Tensor

# Bags gathered at once: 4 MB of float32 at 64 rows of 32 numbers.
GATHERED = 512


def dot_with_rows(bags: Tensor, index: Tensor, table: Tensor) -> Tensor:
    """(n, ...) like `index`: dot product of each bag's (n, D) with the table rows of its index.

    These are the entries `index` of `bags @ table.T`, which `sampled_addmm` computes alone.
    """
    if torch.backends.mkl.is_available():
        zeros = table.new_zeros(index.numel())
        entries = _sparse_rows(_row_starts(index), index.flatten(), zeros, len(table))
        torch.sparse.sampled_addmm(entries, bags, table.t(), beta=0.0, out=entries)
        return entries.values().view(index.shape)
    products = table.new_empty(index.shape)
    for some, where, out in zip(*(x.split(GATHERED) for x in (bags, index, products)), strict=True):
        rows = table.index_select(0, where.flatten()).view(len(some), -1, table.shape[1])
        out.copy_(torch.bmm(rows, some[..., None]).view(out.shape))
    return products


def add_to_rows(table: Tensor, index: Tensor, weights: Tensor, bags: Tensor) -> None:
    """Add each bag's (n, D), times each of its `weights`, to the table row of its `index`.

    The forward pass transposed, a sparse matrix times `bags`: one row of it for each table row,
    with the bags that read it. scipy keeps their order, so sums have a fixed one.
    """
    from scipy.sparse import csc_array  # takes a tenth of a second, which only training needs

    columns = (weights.flatten(), index.flatten(), _row_starts(index))
    shape = (len(table), len(bags))
    by_row = csc_array(tuple(column.numpy() for column in columns), shape=shape).tocsr()
    if not torch.backends.mkl.is_available():
        table += torch.from_numpy(by_row @ bags.numpy())
        return
    starts, bag, weights = map(torch.from_numpy, (by_row.indptr, by_row.indices, by_row.data))
    torch.addmm(table, _sparse_rows(starts, bag, weights, len(bags)), bags, out=table)


def _row_starts(index: Tensor) -> Tensor:
    """(n + 1,) int32: where each bag begins in the flat `index`, and where the last one ends."""
    bag_length = index.shape[1:].numel()
    return torch.arange(0, index.numel() + 1, bag_length, dtype=torch.int32)


def _sparse_rows(starts: Tensor, columns: Tensor, values: Tensor, num_columns: int) -> Tensor:
    """A sparse CSR matrix whose columns may be unsorted and repeat within a row."""
    _silence_sparse_warning()
    return torch.sparse_csr_tensor(
        starts,
        columns,
        values,
        size=(len(starts) - 1, num_columns),
        check_invariants=False,  # they are not those of a canonical matrix, which is fine here
    )


@functools.cache
def _silence_sparse_warning() -> None:
    """torch warns once per process that CSR tensors are in beta, and some versions that nobody
    checks them though they were told not to: let that be now, unheard."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        index = torch.tensor([0, 1])
        torch.sparse_csr_tensor(index, index[:1], torch.ones(1), (1, 1), check_invariants=False)
