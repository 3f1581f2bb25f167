"""Trainings here draw no curves: that is most of their time, and has tests of its own."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def no_curves(request):
    """`curves.png` is an empty file, but in the tests of curves."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name != "test_curves.py":
            patch.setattr(
                "aligndetr.engine.curves.plot_curves", lambda metrics, picture: picture.touch()
            )
        yield
