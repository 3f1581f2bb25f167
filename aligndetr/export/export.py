"""From a detector to a checked file: capture, write, run, compare, and only then put in place."""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from aligndetr.inference import Predictor
from aligndetr.inference.images import load_image
from aligndetr.utils.extras import check_installed
from aligndetr.utils.files import atomic_path

from .graph import to_program
from .metadata import describe
from .onnx_file import write_onnx
from .parity import Comparison, ParityError, Tolerance, agree, compare, render_table
from .ranking import ranking_name
from .running import METADATA_FILE, RunningDetector, load_onnx, load_program

FORMATS = (".onnx", ".pt2")
# The gap is what float32 makes of scores: those of PyTorch, for the demo's model, are up to 1.3e-4
# away from those in float64 (of onnxruntime 4e-6), and two of them may be.
TOLERANCE = Tolerance(box=0.5, score=1e-3, gap=5e-4)
HALF_TOLERANCE = Tolerance(box=2.0, score=0.02, gap=0.05)


def export_model(
    predictor: Predictor,
    path: str | os.PathLike,
    images: Sequence[str | os.PathLike],
    *,
    half: bool = False,
    check: Callable[[RunningDetector], None] | None = None,
    report: Callable[[str], None] = print,
) -> list[Comparison]:
    """Write a detector to a file that runs without this library, after it has shown its worth.

    The file is written beside its place, run (ONNX in onnxruntime) and compared with the model on
    `images`, and takes its place only if it finds the same. What was there before stays until then.

    Args:
        predictor: on the CPU.
        path: ends in .onnx, or in .pt2 for `torch.export`'s format.
        images: files of real images.
        half: ONNX with weights in float16, see `to_half`; the tolerance is then `HALF_TOLERANCE`.
        check: one more check of the running file; it raises where that fails.
        report: called with the table of differences, and at last with a line on the file.

    Returns:
        The differences, which `agree`.

    Raises:
        ValueError: see `check_output`; a model or config that cannot be exported.
        ParityError: the file does not find the same, and is removed.
        OSError: an image or the file.
        MissingExtraError: the extra `export` is not installed.
    """
    check_output(path, half)
    pixels = [(Path(image).name, _pixels(predictor, image)) for image in images]
    if not pixels:
        raise ValueError("no image to compare on: give files of images")
    metadata = describe(predictor) | {"weights": "float16" if half else "float32"}
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    load = load_onnx if Path(path).suffix == ".onnx" else load_program
    with atomic_path(path) as temporary:
        if load is load_onnx:
            write_onnx(predictor.model, temporary, metadata, half)
        else:
            program = to_program(predictor.model)
            torch.export.save(program, temporary, extra_files={METADATA_FILE: json.dumps(metadata)})
        exported = load(temporary, ranking=ranking_name(predictor.model))
        comparisons = compare(predictor.model, exported, pixels, tolerance)
        report(render_table(comparisons, tolerance))
        if not agree(comparisons, tolerance):
            raise ParityError(
                f"{os.fspath(path)!r} was not written: the exported model differs from the model "
                "by more than is allowed, see the table"
            )
        if check is not None:
            check(load(temporary))
    report(f"{os.fspath(path)}: {os.path.getsize(path) / 1e6:.1f} MB")
    return comparisons


def check_output(path: str | os.PathLike, half: bool = False) -> None:
    """Raise at once what would else come to light after minutes: a suffix of no format, a folder
    that cannot be written, a library that is missing."""
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"output {str(path)!r} must end in .onnx or .pt2")
    if half and path.suffix != ".onnx":
        raise ValueError(f"float16 is for .onnx only, and the output is {str(path)!r}")
    if path.is_dir():
        raise ValueError(f"output {str(path)!r} is a folder; give the name of a file")
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
    if path.suffix == ".onnx":
        for name in ("onnx", "onnxruntime"):
            check_installed(name, "export", "ONNX")


def _pixels(predictor: Predictor, image: str | os.PathLike) -> Tensor:
    return predictor.mapper.map_image(load_image(image, predictor.max_pixels), {})["image"]
