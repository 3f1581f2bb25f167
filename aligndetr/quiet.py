"""Imported for its effect, before detectron2 is: one warning less at the start of every program.

fvcore scripts two losses that nothing here uses, and torch says in every process that
`torch.jit.script` is deprecated. Programs import this first; it needs nothing.
"""

import warnings

warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
