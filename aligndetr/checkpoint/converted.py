"""What becomes of a file of another codebase."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Converted:
    """Another codebase's tensors under our names, and what names and tensors do not say.

    Attributes:
        source: whose file it is, in words.
        model: our names to tensors, bit for bit as they were.
        dropped: their names of tensors that no detector here reads, such as a classifier.
        filled: our names of tensors that the file has not because they have one possible value
            there, such as the zeros of a convolution without bias.
        settings: config keys to the values that the weights were trained with and that change
            what the model computes. `load_weights` refuses a model that is built otherwise.
        their_names: our names to theirs, where a backbone of another library may have those.
        training: config keys to the values of the training; a fine-tuning may choose others.
    """

    source: str
    model: dict[str, Tensor] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    filled: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    their_names: dict[str, str] = field(default_factory=dict)

    def put(self, our_name: str | None, name: str, tensor: Tensor) -> None:
        """Take over a tensor; None for `our_name` drops it."""
        if our_name is None:
            self.dropped.append(name)
        else:
            self.model[our_name] = tensor

    def fill(self, our_name: str, tensor: Tensor) -> None:
        """Add a tensor if the file has none of this name."""
        if our_name not in self.model:
            self.model[our_name] = tensor
            self.filled.append(our_name)
