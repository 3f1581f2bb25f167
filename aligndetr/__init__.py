"""AlignDETR: a DETR whose classification scores are aligned with localisation quality.

Import from the subpackages (`aligndetr.layers`, `aligndetr.criterions`, ...). This file
re-exports nothing: detectron2 saves a class under the shortest package prefix that exposes
it, so a name exposed here would change every saved config.
"""

from . import quiet  # noqa: F401

__version__ = "0.1.0"
