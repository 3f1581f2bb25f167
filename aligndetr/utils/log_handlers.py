"""The handlers of all loggers."""

import logging


def stream_handlers() -> list[logging.StreamHandler]:
    """Those that write to a stream, a file among them."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    found = [h for log in loggers if isinstance(log, logging.Logger) for h in log.handlers]
    return [h for h in found if isinstance(h, logging.StreamHandler)]
