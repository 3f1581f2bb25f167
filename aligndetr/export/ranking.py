"""The ranking of tokens: where rounding alone can turn into another detection.

A two-stage model gives its k-th best token the k-th query. Two runtimes round differently, so where
two tokens score the same but for that, they swap these tokens' queries and find different things,
neither of them wrong. A file is therefore compared in two steps: its ranking must be one of the
model's own scores, up to rounding, and the model, given that ranking, must find the same.

Shapes: B batch, S tokens over all levels, Q queries.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aligndetr.modeling import TokenRanking


@dataclass(frozen=True)
class RankingDifference:
    """How far one ranking is from the best one.

    Attributes:
        moved: number of ranks that have another token.
        gap: largest difference in score (a logit) of a rank's two tokens; infinite if the ranking
            is none: of another length, or with a token twice.
    """

    moved: int
    gap: float


def ranking_name(model: nn.Module) -> str | None:
    """The name, within the model, of the module that ranks tokens; None if it has none."""
    names = [name for name, part in model.named_modules() if isinstance(part, TokenRanking)]
    return names[0] if names else None


@contextmanager
def imposed(model: nn.Module, tokens: Tensor) -> Iterator[list[RankingDifference]]:
    """Within it the model ranks its tokens as `tokens` (B, Q) says.

    The list it gives receives, with each run of the model, how far that is from its own ranking.
    """
    differences = []

    def replace(_, inputs: tuple[Tensor, int], ours: Tensor) -> Tensor:
        theirs = tokens.to(ours.device)
        differences.append(ranking_difference(inputs[0], ours, theirs))
        return theirs if theirs.shape == ours.shape else ours

    name = ranking_name(model)
    assert name is not None, "the exported file ranks tokens, the model does not"
    handle = model.get_submodule(name).register_forward_hook(replace)
    try:
        yield differences
    finally:
        handle.remove()


def ranking_difference(scores: Tensor, best: Tensor, other: Tensor) -> RankingDifference:
    """Of two rankings (B, Q), `best` and `other`, of tokens with `scores` (B, S)."""
    if best.shape != other.shape or any(len(row.unique()) < len(row) for row in other):
        return RankingDifference(moved=best.numel(), gap=math.inf)
    gaps = (scores.gather(1, best) - scores.gather(1, other)).abs()
    return RankingDifference(moved=int((best != other).sum()), gap=float(gaps.max()))


def add_ranking_output(content, name: str) -> None:
    """Make an ONNX graph of `to_onnx` give its ranking too, (B, Q) int64, as its last output.

    Args:
        content: `onnx.ModelProto`, which is changed.
        name: of `ranking_name`.
    """
    import onnx

    scope = f"/{name.replace('.', '/')}/"
    (node,) = (n for n in content.graph.node if n.op_type == "TopK" and scope in n.name)
    info = onnx.helper.make_tensor_value_info(node.output[1], onnx.TensorProto.INT64, None)
    content.graph.output.append(info)


class RankingInterpreter(torch.fx.Interpreter):
    """Runs a captured program node by node, and gives its ranking (B, Q) as one more output.

    Args:
        module: of an `ExportedProgram` of `to_program`.
        name: of `ranking_name`.
    """

    def __init__(self, module: torch.fx.GraphModule, name: str):
        super().__init__(module)
        (self._node,) = (
            node
            for node in module.graph.nodes
            if node.target is torch.ops.aten.topk.default
            and any(path.endswith(name) for path, _ in node.meta["nn_module_stack"].values())
        )

    def run_node(self, n: torch.fx.Node):
        result = super().run_node(n)
        if n is self._node:
            self._ranking = result[1]
        return result

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        return (*self.run(images), self._ranking)
