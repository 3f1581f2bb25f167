"""Weight files are data: whatever they ask for, nothing runs."""

import os
import pickle
import zipfile

import numpy as np
import portalocker
import pytest
import torch

from aligndetr.checkpoint import CheckpointError, local_checkpoint, read_checkpoint
from aligndetr.checkpoint.reading import check_intact


class Hostile:
    """Pickled, it asks to make a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def write(path, content, protocol=2):
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    else:
        torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize("place", ["weight", "whole", "beside"])
def test_hostile_file_is_refused_and_runs_nothing(tmp_path, suffix, place):
    hostile = Hostile(tmp_path / "it_ran")
    content = {
        "weight": {"model": {"a": hostile}},
        "whole": hostile,
        "beside": {"model": {"a": torch.ones(1) if suffix == ".pth" else np.ones(1)}, "x": hostile},
    }[place]
    path = write(tmp_path / f"weights{suffix}", content)
    with pytest.raises(CheckpointError, match=r"(posix|nt)\.mkdir") as caught:
        read_checkpoint(path)
    assert path in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "it_ran").exists()


def test_hostile_pickle_under_a_torch_name_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Hostile(tmp_path / "it_ran"), protocol=2))
    with pytest.raises(CheckpointError):
        read_checkpoint(str(path))
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize(
    "global_", ["builtins eval", "numpy load", "numpy._core.multiarray fromfile", "torch load"]
)
def test_pickle_knows_array_rebuilders_only(tmp_path, global_):
    module, name = global_.split()
    path = tmp_path / "weights.pkl"
    path.write_bytes(f"c{module}\n{name}\n(S'x'\ntR.".encode())
    with pytest.raises(CheckpointError, match=rf"{module}\.{name}"):
        read_checkpoint(str(path))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_model_zoo_pickle_becomes_tensors(tmp_path, protocol):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = {
        "model": {"res2.weight": array, "count": np.int64(4)},
        "__author__": "torchvision",
        "matching_heuristics": True,
    }
    checkpoint = read_checkpoint(write(tmp_path / "weights.pkl", content, protocol))
    assert torch.equal(checkpoint["model"]["res2.weight"], torch.from_numpy(array))
    assert checkpoint["model"]["count"].item() == 4
    assert checkpoint["matching_heuristics"] is True


def test_pickle_of_numpy_1_is_read(tmp_path):
    content = pickle.dumps({"model": {"a": np.ones(2, np.float32)}}, protocol=2)
    path = tmp_path / "weights.pkl"
    path.write_bytes(content.replace(b"numpy._core.", b"numpy.core."))
    assert read_checkpoint(str(path))["model"]["a"].tolist() == [1, 1]


def test_bare_state_dict_is_a_checkpoint(tmp_path):
    path = write(tmp_path / "weights.pth", {"a": torch.ones(2)})
    assert read_checkpoint(path)["model"]["a"].tolist() == [1, 1]


@pytest.mark.parametrize(
    "content",
    [
        {"model": {}},
        {"model": {"a": "text"}},
        {"state": {"a": torch.ones(1)}},
        [torch.ones(1)],
        {"model": torch.ones(1)},
    ],
)
def test_file_without_weights_is_refused(tmp_path, content):
    path = write(tmp_path / "weights.pth", content)
    with pytest.raises(CheckpointError, match="weights.pth"):
        read_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize("keep", [0, 1, 100])
def test_cut_off_file_is_refused(tmp_path, suffix, keep):
    content = {"model": {"a": torch.ones(99) if suffix == ".pth" else np.ones(99)}}
    path = tmp_path / f"weights{suffix}"
    write(path, content)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="not readable as data: .*[a-z]"):
        read_checkpoint(str(path))


def test_missing_file_is_named_with_its_remedy(tmp_path):
    path = str(tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth.*train\.init_checkpoint"):
        local_checkpoint(path)


def test_home_folder_may_be_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path / "weights.pth", {"a": torch.ones(1)})
    assert local_checkpoint("~/weights.pth") == path


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("detectron2://ImageNet/R-50.pkl", "detectron2/ImageNet/R-50.pkl"),
        ("https://example.org/../../x/%2e%2e/../model.pth", "model.pth"),
        ("http://localhost:80/a/model.pth?token=1", "localhost:80/a/model.pth"),
    ],
)
def test_downloads_stay_in_the_cache(url, place, tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setattr("aligndetr.checkpoint.reading.download", lambda url, path: path)
    assert local_checkpoint(url) == str(tmp_path / place)


def test_compressed_parts_are_refused(tmp_path):
    """They are no work of torch's, and a small file could unpack to all of the memory."""
    path = write(tmp_path / "weights.pth", {"a": torch.ones(2)})
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb:
        for name in stored.namelist():
            bomb.writestr(name, stored.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="its parts are compressed"):
        read_checkpoint(str(tmp_path / "bomb.pth"))


def test_failed_download_names_url_and_remedy(monkeypatch):
    def offline(url, path):
        raise OSError("no route to host")

    monkeypatch.setattr("aligndetr.checkpoint.reading.download", offline)
    with pytest.raises(CheckpointError, match=r"detectron2://R-50.*no route.*init_checkpoint"):
        local_checkpoint("detectron2://R-50.pkl")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (portalocker.LockException("no locks available"), "no locks available"),
        (portalocker.AlreadyLocked(), "another process has held"),
    ],
)
def test_a_cache_that_cannot_be_locked_is_a_failed_download(error, reason, tmp_path, monkeypatch):
    def refuse(file, flags):
        raise error

    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setattr("portalocker.lock", refuse)
    monkeypatch.setattr("aligndetr.checkpoint.reading.LOCK_WAIT", 0.0)
    with pytest.raises(CheckpointError, match=f"R-50.*{reason}.*init_checkpoint"):
        local_checkpoint("detectron2://R-50.pkl")


@pytest.mark.parametrize("read", [read_checkpoint, check_intact])
def test_a_file_that_is_not_there_is_no_damaged_one(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        read(str(tmp_path / "nowhere.pth"))
