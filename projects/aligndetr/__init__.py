"""The Align-DETR model (`modeling`) and its experiments (`configs`).

`projects` itself has no `__init__.py`: as a namespace package it does not hide a
`projects` folder of your own.
"""

import aligndetr.quiet  # noqa: F401 - before what follows imports detectron2
