r"""Evaluate trained weights on the val data of a config: a file, or one that is shipped, by name.

    %(prog)s --config-file aligndetr_demo \
        train.init_checkpoint=output/demo/model_final.pth

KEY=VALUE changes the config.
"""

from . import train


def main() -> None:
    """As `train --eval-only`."""
    train.main(__doc__, eval_only=True)
