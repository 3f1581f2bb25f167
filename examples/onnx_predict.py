"""Find objects by an exported ONNX file, with numpy, Pillow and onnxruntime alone.

python examples/onnx_predict.py model.onnx image.jpg [more.jpg ...] [--score-threshold 0.3]

Prints a line for each object: file, name, score, and the box's left, top, right and bottom in
pixels of the image. This file imports nothing of AlignDETR: copy it and take it from there.
"""

import argparse
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


class OnnxDetector:
    """A detector in an ONNX file, which says itself how its input is made.

    Args:
        path: of the file.
        providers: of onnxruntime, in order of preference; a GPU needs onnxruntime-gpu and
            "CUDAExecutionProvider" before the CPU's.
    """

    def __init__(self, path, providers=("CPUExecutionProvider",)):
        self.session = onnxruntime.InferenceSession(path, providers=list(providers))
        metadata = self.session.get_modelmeta().custom_metadata_map
        if "aligndetr_version" not in metadata:
            raise ValueError(f"{path} was not written by AlignDETR's export")
        self.class_names = json.loads(metadata["class_names"])
        self.channel_order = metadata["channel_order"]
        resize = json.loads(metadata["resize"])
        self.short_edge, self.max_size = resize["short_edge"], resize["max_size"]
        self.resampling = Image.Resampling[resize["resampling"].removeprefix("Pillow ").upper()]

    def prepare(self, image):
        """A Pillow image, upright, to the (1, 3, H, W) uint8 that the file takes."""
        image = image.convert("RGB")
        size = resized(image.width, image.height, self.short_edge, self.max_size)
        pixels = np.asarray(image.resize(size, self.resampling))
        if self.channel_order == "BGR":
            pixels = pixels[:, :, ::-1]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])

    def __call__(self, image, score_threshold=0.3):
        """Find objects in a Pillow image.

        Returns:
            boxes (N, 4), xyxy in pixels of the image as its EXIF orientation turns it; scores (N,)
            from high to low; class ids (N,), which index `class_names`.
        """
        if image.mode.startswith(("I", "F")):  # convert("RGB") would cut it off at 255
            name = getattr(image, "filename", "the image")
            raise ValueError(f"{name} has more than 8 bits per channel; scale it to 0 ... 255")
        image = ImageOps.exif_transpose(image)
        pixels = self.prepare(image)
        boxes, scores, class_ids = (out[0] for out in self.session.run(None, {"images": pixels}))
        scale_x, scale_y = image.width / pixels.shape[3], image.height / pixels.shape[2]
        boxes = boxes * np.array([scale_x, scale_y, scale_x, scale_y], dtype=np.float32)
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        kept = has_area & (scores >= score_threshold)
        return boxes[kept], scores[kept], class_ids[kept]


def resized(width, height, short_edge, max_size):
    """(width, height) with a shorter edge of `short_edge`, or less if the longer one would exceed
    `max_size`."""
    scale = short_edge / min(width, height)
    # The shorter edge exactly, not up to a rounding error.
    new_width, new_height = (scale * width, float(short_edge))
    if width <= height:
        new_width, new_height = (float(short_edge), scale * height)
    longer = max(new_width, new_height)
    if longer > max_size:
        new_width, new_height = (edge * (max_size / longer) for edge in (new_width, new_height))
    return int(new_width + 0.5), int(new_height + 0.5)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="ONNX file of tools/export.py")
    parser.add_argument("images", nargs="+", help="files")
    parser.add_argument("--score-threshold", type=float, default=0.3, help="(%(default)s)")
    args = parser.parse_args()
    try:
        detector = OnnxDetector(args.model)
    except Exception as error:  # those of onnxruntime have nothing else in common
        sys.exit(f"error: {args.model} cannot be used: {' '.join(str(error).split())}")
    try:
        for path in args.images:
            with Image.open(path) as image:
                found = detector(image, args.score_threshold)
            for box, score, class_id in zip(*found):
                corners = " ".join(f"{edge:.1f}" for edge in box)
                print(f"{path}: {detector.class_names[class_id]} {score:.3f} {corners}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
