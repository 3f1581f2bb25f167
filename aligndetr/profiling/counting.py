"""Parameters, operations and activations of a detector, counted by fvcore for one image.

One multiply-add is one FLOP, as fvcore, detectron2 and papers on DETR count. Counted are
convolutions, matrix products, normalisation but for BatchNorm (which is fused at inference),
attention and sampling; other elementwise operations are not.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from detectron2.export import TracingAdapter
from detectron2.utils.analysis import FlopCountAnalysis
from fvcore.nn import ActivationCountAnalysis, flop_count_table, parameter_count
from fvcore.nn.jit_handles import get_shape
from torch import nn

FLOPS_PER_SAMPLE = 5


def count_model(model: nn.Module, height: int, width: int) -> "ModelCounts":
    """Run a model once under a tracer and count what it does.

    Args:
        model: detectron2's convention: list of dicts in. It is left in eval mode.
        height, width: of the image, in pixels, as the model gets it.

    Raises:
        ValueError: a size below 1.
    """
    if height < 1 or width < 1:
        raise ValueError(f"an image of {height} x {width} (height x width) has no pixel")
    inputs = [{"image": torch.zeros(3, height, width, dtype=torch.uint8)}]
    return ModelCounts(model.eval(), inputs)


class ModelCounts:
    """Counts of a model as a whole and of each module in it.

    Operations belong to the module in whose `forward` they run, and to all that hold it. A module
    that stands twice (the heads of a DETR's decoder) is counted once.
    """

    def __init__(self, model: nn.Module, inputs: list[dict]):
        self._flops = FlopCountAnalysis(model, inputs)
        self._flops.set_op_handle(
            "aten::grid_sampler",
            _sampling_flops,
            "aten::scaled_dot_product_attention",
            _attention_flops,
        )
        wrapped = TracingAdapter(model, inputs, allow_non_tensor=True)
        self._activations = ActivationCountAnalysis(wrapped, wrapped.flattened_inputs)
        self._activations.set_op_handle("aten::scaled_dot_product_attention", _output_size)
        self._parameters = parameter_count(model)
        for analysis in (self._flops, self._activations):
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)

    def parameters(self, module: str = "") -> int:
        """Of a module by its name in the model, "" for all; a tensor that stands twice is one."""
        return self._parameters[module]

    def flops(self, module: str = "") -> int:
        return self._flops.total(_in_wrapper(module))

    def flops_by_operator(self, module: str = "") -> dict[str, int]:
        return dict(self._flops.by_operator(_in_wrapper(module)))

    def activations(self, module: str = "") -> int:
        """Numbers that convolutions, matrix products and attention put out."""
        return self._activations.total(_in_wrapper(module))

    def table(self, depth: int = 2) -> str:
        """Markdown, a row per module down to `depth` below the model; a module that holds one
        other and nothing else shares its row."""
        return flop_count_table(
            self._flops,
            max_depth=depth,
            activations=self._activations,
            show_param_shapes=False,
        )


def _in_wrapper(module: str) -> str:
    return f"model.{module}".removesuffix(".")


def _sampling_flops(_: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Of deformable attention: 5 B Q L P C, as appendix A.1 of Deformable DETR has it.

    A bilinear sample takes four multiply-adds a channel, and its share of the weighted sum a fifth.
    All implementations are counted alike: the tracer sees `grid_sample`, with B M D Q P outputs on
    each of L levels, whichever would run otherwise (C = M D).
    """
    return FLOPS_PER_SAMPLE * _output_size(_, outputs)


def _attention_flops(inputs: Sequence[Any], _: Sequence[Any]) -> int:
    """(..., Q, D) queries, (..., N, D) keys, (..., N, E) values: the products Q K^T and A V."""
    query, key, value = (get_shape(tensor) for tensor in inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _output_size(_: Sequence[Any], outputs: Sequence[Any]) -> int:
    return prod(get_shape(outputs[0]))
