"""Optional libraries, the extras of setup.py: imported where used, missed by the extra's name."""

import importlib
import importlib.util
from types import ModuleType


class MissingExtraError(ImportError, ValueError):
    """A library of an extra is not installed; the message is the command that installs it.

    Also a ValueError, as all that a user can mend: programs show it in one line.
    """


def require(name: str, extra: str, purpose: str, otherwise: str = "") -> ModuleType:
    """Import an optional library.

    Args:
        name: of the module, dots allowed.
        extra: of setup.py, in which it is.
        purpose: what needs it, the subject of the message's sentence.
        otherwise: what else the user can do, said after the command.

    Raises:
        MissingExtraError: it is not installed. One that is but fails is left to say why.
    """
    check_installed(name, extra, purpose, otherwise)
    return importlib.import_module(name)


def check_installed(name: str, extra: str, purpose: str, otherwise: str = "") -> None:
    """As `require`, without importing: that can take seconds."""
    package = name.partition(".")[0]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:  # without origin it is a mere folder of that name
        raise MissingExtraError(
            f"{purpose} needs {package}, which is not installed; "
            f"pip install 'aligndetr[{extra}]'{otherwise}",
            name=package,
        )
