"""Where a data loading worker writes: to the terminal itself, past its parent's progress bar.

Rich's bar takes the place of standard output and standard error, and redraws itself in a thread
that holds a lock meanwhile. A worker forked in that moment has the lock and not the thread, and
would wait for ever with its first warning.
"""

import sys
from typing import Any

from aligndetr.utils.log_handlers import stream_handlers


def write_past_progress_bar(_worker_id: int = 0) -> None:
    """To be called in a worker (`worker_init_fn` of a DataLoader)."""
    sys.stdout, sys.stderr = _behind_bar(sys.stdout), _behind_bar(sys.stderr)
    for handler in stream_handlers():
        if handler.stream is not (terminal := _behind_bar(handler.stream)):
            handler.stream = terminal  # `setStream` would flush, which takes the lock


def _behind_bar(stream: Any) -> Any:
    return getattr(stream, "rich_proxied_file", stream)
