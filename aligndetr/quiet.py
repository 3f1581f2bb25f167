"""Imported with the package for its effect: one warning less at the start of every program.

fvcore scripts two losses that nothing here uses, and torch says in every process that
`torch.jit.script` is deprecated. What imports detectron2 first has to import this before.
"""

import warnings

warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
