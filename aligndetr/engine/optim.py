"""Learning rates that depend on the name of a parameter."""

from collections.abc import Callable


def backbone_lr_factor(factor: float) -> Callable[[str], float]:
    """Scale the learning rate of the backbone.

    Made for `get_default_optimizer_params(lr_factor_func=...)` of detectron2. A factory, so
    that a config can hold it as a name and a number and be saved as plain YAML:
    `lr_factor_func=L(backbone_lr_factor)(factor=0.1)`.

    Args:
        factor: multiplies the rate of each parameter with "backbone" in its name; >= 0, where
            0 stops the backbone from learning.

    Returns:
        A function from the name of a parameter to its factor, 1 outside the backbone.
    """
    if not factor >= 0:  # written so that NaN is refused as well
        raise ValueError(
            f"`factor` (={factor}) must be a number >= 0; set `factor` of "
            "`optimizer.params.lr_factor_func` in the config"
        )

    def lr_factor(parameter_name: str) -> float:
        return factor if "backbone" in parameter_name else 1.0

    return lr_factor
