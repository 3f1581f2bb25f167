"""Videos and cameras: frames in, annotated video or numbered results out, damage and Ctrl-C.

No machine here has a camera: a fake stands in for OpenCV's capture.
"""

import csv
import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from aligndetr.data import DetrDatasetMapper
from aligndetr.inference import Predictor, VideoError, find_inputs, predict_files
from aligndetr.inference.videos import MAX_DAMAGED, Video, open_video_output

WIDTH, HEIGHT, FPS, NUM_FRAMES = 128, 96, 12.5, 20


def frame_image(number):
    """BGR; the number of the frame is seen as a red patch, 20 pixels wide, that moves right."""
    image = np.full((HEIGHT, WIDTH, 3), 30, np.uint8)
    image[40:60, 4 * number : 4 * number + 20] = (0, 0, 255)
    return image


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """whole.mp4; damaged.avi, in which frame 7 lies in ruins; cut.avi and cut.mp4; text.mp4."""
    folder = tmp_path_factory.mktemp("clips")
    for name, codec in (("whole.mp4", "mp4v"), ("whole.avi", "MJPG")):
        fourcc = cv2.VideoWriter_fourcc(*codec)
        writer = cv2.VideoWriter(str(folder / name), fourcc, FPS, (WIDTH, HEIGHT))
        for number in range(NUM_FRAMES):
            writer.write(frame_image(number))
        writer.release()
    content = bytearray((folder / "whole.avi").read_bytes())
    starts, position = [], content.find(b"movi")
    while (position := content.find(b"00dc", position + 1)) > 0 and len(starts) < NUM_FRAMES:
        starts.append(position)
    (folder / "cut.avi").write_bytes(content[: starts[5]])
    content[starts[7] + 8 : starts[7] + 308] = bytes(300)
    (folder / "damaged.avi").write_bytes(content)
    whole = (folder / "whole.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_text("no video")
    return folder


class RedPatch(torch.nn.Module):
    """Finds the red patch, in RGB, wherever it is; after `stop_after` images someone types ^C."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.left = stop_after

    def forward(self, batch):
        results = []
        for x in batch:
            if self.left is not None:
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left -= 1
            red, green, _ = x["image"].int()
            y, x_ = torch.nonzero(red - green > 100, as_tuple=True)
            box = [x_.min(), y.min(), x_.max() + 1, y.max() + 1] if len(y) else [0, 0, 1, 1]
            instances = Instances((x["height"], x["width"]))
            instances.pred_boxes = Boxes(torch.tensor([[float(edge) for edge in box]]))
            instances.scores, instances.pred_classes = torch.tensor([0.5]), torch.tensor([1])
            results.append({"instances": instances})
        return results


def red_predictor(stop_after=None):
    mapper = DetrDatasetMapper([], None, is_train=False)
    return Predictor(RedPatch(stop_after), mapper, ["cat", "bus"])


def frames_of(path):
    """Read by OpenCV itself: (frames per second, list of BGR arrays)."""
    capture, images = cv2.VideoCapture(str(path)), []
    while True:
        there, image = capture.read()
        if not there:
            return capture.get(cv2.CAP_PROP_FPS), images
        images.append(image)


def run(files, output, predictor=None, **options):
    said = []
    files = [str(file) for file in files]
    broken = predict_files(
        predictor or red_predictor(), files, output, report=said.append, **options
    )
    return broken, said


@pytest.mark.parametrize("output", ["out.mp4", "out.avi", "folder"])
def test_an_annotated_video_has_the_frames_rate_and_size_of_the_original(output, clips, tmp_path):
    assert run([clips / "whole.mp4"], tmp_path / output) == ([], [])
    path = tmp_path / output / "whole.mp4" if output == "folder" else tmp_path / output
    fps, images = frames_of(path)
    assert fps == FPS
    assert [image.shape for image in images] == [(HEIGHT, WIDTH, 3)] * NUM_FRAMES
    # Drawn on, each in its turn: the patch is where it was, and the frame around it is new.
    for number, image in enumerate(images):
        patch = image[46:54, 4 * number + 6 : 4 * number + 14].mean((0, 1))
        assert patch[2] > 150 > 100 > patch[0], number
        assert np.abs(image.astype(int) - frame_image(number)).max() > 100
    left_behind = [p.name for p in tmp_path.rglob("*") if p.is_file()]
    assert left_behind == [path.name]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_results_have_the_number_of_the_frame(batch_size, clips, tmp_path):
    video = str(clips / "whole.mp4")
    run([video], tmp_path / "out.json", batch_size=batch_size)
    results = json.loads((tmp_path / "out.json").read_text())
    assert [r["frame"] for r in results] == list(range(NUM_FRAMES))
    assert {r["file_name"] for r in results} == {video}
    assert results[3]["image_id"] == f"{video}#3"
    for number, result in enumerate(results):  # what was found belongs to this frame
        assert result["bbox"] == pytest.approx([4 * number, 40, 20, 20], abs=2)
    run([video], tmp_path / "out.csv", batch_size=batch_size)
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["frame"]) for row in rows] == list(range(NUM_FRAMES))
    assert [float(row["xmin"]) for row in rows] == [r["bbox"][0] for r in results]


def test_a_damaged_frame_is_named_and_the_rest_keeps_its_numbers(clips, tmp_path):
    video = str(clips / "damaged.avi")
    broken, said = run([video], tmp_path / "out.json")
    assert broken == [video]
    assert len(said) == 1
    results = json.loads((tmp_path / "out.json").read_text())
    missing = set(range(NUM_FRAMES)) - {r["frame"] for r in results}
    assert len(missing) == 1
    assert f"frame {missing.pop()} of '{video}' cannot be decoded" in said[0]


def test_a_video_that_ends_too_early_is_named_and_gives_what_it_has(clips, tmp_path):
    broken, said = run([clips / "cut.avi"], tmp_path / "out.json")
    num_found = len(json.loads((tmp_path / "out.json").read_text()))
    assert 0 < num_found <= 5
    assert broken == [str(clips / "cut.avi")]
    assert f"cut.avi' ends after {num_found} frames of the 20" in said[0]


def test_what_is_no_video_is_named_and_the_rest_goes_on(clips, tmp_path, capfd):
    files = [clips / name for name in ("text.mp4", "cut.mp4", "no_such.mp4", "whole.avi")]
    broken, said = run(files, tmp_path / "out")
    assert broken == [str(file) for file in files[:3]]
    assert "text.mp4' is not a video that OpenCV can decode; is it complete?" in said[0]
    assert "cut.mp4' is not a video" in said[1]
    assert "no_such.mp4' does not exist" in said[2]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole.mp4"]
    assert capfd.readouterr().err == ""  # OpenCV and FFmpeg say nothing of their own


def test_images_and_videos_go_together_in_their_order(clips, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), frame_image(4))
    cv2.imwrite(str(tmp_path / "z.png"), frame_image(5))
    files = [tmp_path / "a.png", clips / "whole.mp4", tmp_path / "z.png", clips / "whole.avi"]
    run(files, tmp_path / "out.json")
    results = json.loads((tmp_path / "out.json").read_text())
    assert list(dict.fromkeys(r.get("file_name", r["image_id"]) for r in results)) == list(
        map(str, files)
    )
    assert "frame" not in results[0]
    run(files, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a.png", "whole.mp4", "whole_2.mp4", "z.png"]
    for name in ("whole.mp4", "whole_2.mp4"):
        assert len(frames_of(tmp_path / "out" / name)[1]) == NUM_FRAMES


@pytest.mark.parametrize("output", ["out.mp4", "out.json", "out.csv"])
def test_ctrl_c_keeps_what_was_found_as_a_whole_file(output, clips, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run([clips / "whole.mp4"], tmp_path / output, red_predictor(stop_after=6))
    path = tmp_path / output
    assert [p.name for p in tmp_path.iterdir()] == [output]
    if output == "out.mp4":
        assert len(frames_of(path)[1]) == 6
    elif output == "out.json":
        assert [r["frame"] for r in json.loads(path.read_text())] == list(range(6))
    else:
        assert len(path.read_text().splitlines()) == 1 + 6


def test_another_error_keeps_the_earlier_video(clips, tmp_path):
    (tmp_path / "out.mp4").write_text("earlier")
    predictor = red_predictor()
    predictor.model.forward = None
    with pytest.raises(TypeError):
        run([clips / "whole.mp4"], tmp_path / "out.mp4", predictor)
    assert (tmp_path / "out.mp4").read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


def test_a_video_is_not_written_over_itself(clips):
    before = (clips / "whole.mp4").read_bytes()
    for output in (clips / "whole.mp4", clips):
        with pytest.raises(ValueError, match="would overwrite"):
            run([clips / "whole.mp4"], output)
    assert (clips / "whole.mp4").read_bytes() == before


def test_a_video_that_cannot_be_written_is_named(clips, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/out.mp4' cannot be written"):
        run([clips / "whole.mp4"], tmp_path / "file" / "out.mp4")


def test_a_full_disk_is_noticed(tmp_path, monkeypatch):
    class Forgetful:
        """OpenCV's writer on a full disk: no error, and half of the pictures."""

        fourcc = staticmethod(cv2.VideoWriter.fourcc)

        def __init__(self, path, *arguments):
            self.writer, self.count = real(path, *arguments), 0

        def write(self, image):
            self.count += 1
            if self.count <= 3:
                self.writer.write(image)

        def __getattr__(self, name):
            return getattr(self.writer, name)

    real = cv2.VideoWriter
    monkeypatch.setattr(cv2, "VideoWriter", Forgetful)

    def write_six_frames():
        with open_video_output(tmp_path / "out.mp4", FPS, (WIDTH, HEIGHT)) as write:
            for number in range(6):
                write(Image.fromarray(frame_image(number)))

    with pytest.raises(OSError, match="as a whole; is the disk full"):
        write_six_frames()
    assert list(tmp_path.iterdir()) == []


class FakeCapture:
    """OpenCV's capture of a camera that is pulled out after six frames; the third is damaged."""

    def __init__(self, device):
        assert device == 0
        self.number = -1

    def isOpened(self):
        return True

    def get(self, what):
        return {cv2.CAP_PROP_FPS: 0.0, cv2.CAP_PROP_FRAME_COUNT: -1.0}[what]

    def set(self, what, value):
        return False

    def read(self):
        self.number += 1
        if self.number == 2 or self.number > 5:
            return False, None
        return True, frame_image(self.number)

    def release(self):
        self.number = 10**6


def test_a_camera_is_read_until_it_is_gone(tmp_path, monkeypatch):
    real = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda s: FakeCapture(s) if s == 0 else real(s))
    assert find_inputs(["0"]) == ["0"]
    broken, said = run(["0"], tmp_path / "out.json")
    assert broken == ["0"]
    assert "frame 2 of '0' cannot be decoded" in said[0]
    assert "camera 0 gives no more frames, after 6" in said[1]
    results = json.loads((tmp_path / "out.json").read_text())
    assert [r["frame"] for r in results] == [0, 1, 3, 4, 5]
    run(["0"], tmp_path / "out")
    fps, images = frames_of(tmp_path / "out" / "camera_0.mp4")
    assert fps == 25  # the camera does not say
    assert len(images) == 5


def test_a_camera_that_is_not_there_is_named():
    with pytest.raises(VideoError, match="camera 63 cannot be opened; is it connected"):
        Video("63")


def test_a_file_named_like_a_camera_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0").write_text("no picture")
    broken, said = run(find_inputs(["0"]), tmp_path / "out.json")
    assert broken == ["0"]
    assert "'0' is not an image" in said[0]


def test_folders_give_their_videos_too(clips):
    names = [file.removeprefix(f"{clips}/") for file in find_inputs([str(clips)])]
    assert names == sorted(path.name for path in clips.iterdir())


def test_a_video_that_no_codec_takes_is_named_and_leaves_nothing(tmp_path):
    path = tmp_path / "out.mp4"
    with (
        pytest.raises(OSError, match=r"out\.mp4' cannot be written as a video of 0 x 0"),
        open_video_output(path, FPS, (0, 0)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_search_for_more_frames_ends():
    reads = []

    class Dead(FakeCapture):
        def read(self):
            reads.append(1)
            return False, None

    video = Video.__new__(Video)
    video.name, video._is_camera, video._capture, video.num_frames = "0", True, Dead(0), None
    assert list(video.frames(lambda error: None)) == []
    assert len(reads) == MAX_DAMAGED
