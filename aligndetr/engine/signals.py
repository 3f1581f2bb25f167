"""Signals that ask a run to stop: it saves first, then ends with a code that says so."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

from aligndetr.utils.signals import STOP_SIGNALS

logger = logging.getLogger(__name__)

EXIT_STOPPED = 75
"""Stopped by a signal, a checkpoint is saved, `--resume` goes on. (EX_TEMPFAIL: try again.)"""

EXIT_NOT_SAVED = 74
"""Stopped by a signal, but the checkpoint could not be written. (EX_IOERR)"""


class TrainingStopped(SystemExit):
    """Ends the process with EXIT_STOPPED or EXIT_NOT_SAVED as `code`; raised on all ranks."""


class StopSignals:
    """Notes the first stop signal while entered. After SIGINT, the next one kills the process.

    Attributes:
        received: number of the signal, 0 for none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        # Python lets the main thread alone set handlers.
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            # The system's own action: it also ends a process that waits for another rank.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if not self.received:
            self.received = number
            again = "; Ctrl-C once more stops at once" if number == signal.SIGINT else ""
            logger.warning(
                "%s: saving a checkpoint after this step, then stopping%s",
                signal.Signals(number).name,
                again,
            )
