"""All that is wrong or odd in a data set, collected in one pass instead of ended by the first.

Training checks what it must and stops at the first mistake (`checks.py`). Here every check runs,
every image is decoded, and train and val are compared. A json is read whole.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .checks import (
    BOX_PROBLEMS,
    MAX_EXAMPLES,
    DatasetError,
    check_box,
    check_entry,
    check_image,
    check_lists,
    check_same_classes,
    classify_boxes,
    describe,
)
from .coco_reading import is_crowd
from .image_paths import ImageFolder
from .image_prints import ImagePrint, inspect_image, similar_pairs


@dataclass(frozen=True)
class Finding:
    """Something wrong ("error": training would stop or learn nonsense) or odd ("warning")."""

    level: str
    split: str
    text: str


@dataclass
class SplitSurvey:
    """One split, without the entries that are broken.

    Attributes:
        images: entries of the json, of unique ids.
        annotations: entries whose boxes can be trained on, or are crowd.
        class_names: in label order, which is that of the category ids.
        prints: per image; None where it was not or could not be decoded.
    """

    split: str
    json_file: Path
    image_root: Path
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    categories: dict[int, str] = field(default_factory=dict)
    prints: list[ImagePrint | None] = field(default_factory=list)

    @property
    def class_names(self) -> list[str]:
        return [self.categories[number] for number in sorted(self.categories)]

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Annotations without crowd regions."""
        return [a for a in self.annotations if not is_crowd(a)]

    def objects_per_class(self) -> dict[str, int]:
        """In label order; classes of one name are added up."""
        counts = Counter(a["category_id"] for a in self.objects)
        result: dict[str, int] = {}
        for number in sorted(self.categories):
            name = self.categories[number]
            result[name] = result.get(name, 0) + counts[number]
        return result

    def objects_per_image(self) -> np.ndarray:
        counts = Counter(a["image_id"] for a in self.objects)
        return np.array([counts[image["id"]] for image in self.images], dtype=int)

    def box_edges(self) -> np.ndarray:
        """(N,) square roots of the boxes' areas, in pixels."""
        sides = [a["bbox"][2] * a["bbox"][3] for a in self.objects]
        return np.sqrt(np.array(sides, dtype=float))


def survey_split(
    split: str, json_file: Path, image_root: Path, decode: bool = True
) -> tuple[SplitSurvey, list[Finding]]:
    """Check one split.

    Args:
        decode: read every image, for broken ones, sizes and duplicates; False only looks whether
            the files are there.
    """
    survey, findings = SplitSurvey(split, json_file, image_root), []

    def say(level: str, text: str, examples: Sequence[Any] = ()) -> None:
        findings.append(Finding(level, split, text + _examples(examples)))

    try:
        content = json.loads(json_file.read_bytes())
        if not isinstance(content, dict):
            raise DatasetError(f"it holds a {type(content).__name__}, not a COCO json's object")
        lists = {key: len(value) for key, value in content.items() if isinstance(value, list)}
        check_lists(lists, content, json_file)
    except (OSError, ValueError, RecursionError) as error:
        say("error", f"{str(json_file)!r} cannot be read: {error}")
        return survey, findings
    for key, check in (
        ("categories", None),
        ("images", check_image),
        ("annotations", check_box),
    ):
        content[key] = _sound(content[key], key, check, json_file, say)
    survey.categories = {c["id"]: c["name"] for c in content["categories"]}
    survey.images = content["images"]
    survey.annotations = _check_annotations(survey, content["annotations"], say)
    _check_files(survey, decode, say)
    if not survey.objects:
        say("error" if split == "train" else "warning", "there is no object in it")
    empty = int((survey.objects_per_image() == 0).sum())
    if empty:
        say("warning", f"{empty} of {len(survey.images)} images have no object")
    return survey, findings


def compare_splits(train: SplitSurvey, val: SplitSurvey) -> list[Finding]:
    """What is wrong between the two: other classes, classes never learnt, images in both."""
    findings = []
    try:
        check_same_classes(train.class_names, val.class_names)
    except DatasetError as error:
        findings.append(Finding("error", "both", str(error)))
    learnt = train.objects_per_class()
    unlearnt = [name for name, count in learnt.items() if not count]
    if unlearnt:
        text = f"{len(unlearnt)} of {len(learnt)} classes have no train object"
        findings.append(Finding("warning", "train", text + _examples(unlearnt)))
    pairs = similar_pairs(train.prints, val.prints)
    if pairs:
        named = [
            f"{train.images[i]['file_name']!r} and {val.images[j]['file_name']!r}" for i, j in pairs
        ]
        text = f"{len(pairs)} pairs of a train and a val image look the same; AP on val is too good"
        findings.append(Finding("warning", "both", text + _examples(named)))
    return findings


def _sound(
    entries: list, key: str, check: Callable | None, json_file: Path, say: Callable
) -> list[dict[str, Any]]:
    """The entries that pass, each id once; the others are said."""
    sound, broken, seen, repeated = [], [], set(), []
    for position, entry in enumerate(entries):
        try:
            check_entry(entry, key, position, json_file)
            if check:
                check(entry, json_file)
        except DatasetError as error:
            broken.append(str(error))
            continue
        if entry["id"] in seen:
            repeated.append(entry["id"])
            continue
        seen.add(entry["id"])
        sound.append(entry)
    if broken:
        say("error", f"{len(broken)} of {len(entries)} {key} are broken", broken)
    if repeated:
        say("error", f"{len(repeated)} ids of {key} stand twice", repeated)
    return sound


def _check_annotations(
    survey: SplitSurvey, annotations: list[dict], say: Callable
) -> list[dict[str, Any]]:
    unknown = sorted({a["category_id"] for a in annotations} - set(survey.categories))
    if unknown:
        say("error", f"{len(unknown)} category ids of annotations are not in categories", unknown)
    annotations = [a for a in annotations if a["category_id"] in survey.categories]
    if not annotations:
        return []
    sizes = {image["id"]: (image["width"], image["height"]) for image in survey.images}
    problems = classify_boxes(
        np.array([a["bbox"] for a in annotations], dtype=float),
        np.array([sizes.get(a["image_id"], (np.nan, np.nan)) for a in annotations], dtype=float),
    )
    for number, problem in enumerate(BOX_PROBLEMS):
        rows = np.flatnonzero(problems == number)
        if len(rows):
            named = [describe(annotations[i]["id"], annotations[i]["image_id"]) for i in rows]
            say("warning", f"{len(rows)} of {len(annotations)} boxes {problem}", named)
    can_be_used = len(BOX_PROBLEMS) - 1  # the last problem is clipped, see NUM_DROPPED
    return [a for a, p in zip(annotations, problems, strict=True) if p >= can_be_used]


def _check_files(survey: SplitSurvey, decode: bool, say: Callable) -> None:
    names = [image["file_name"] for image in survey.images]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        say("warning", f"{len(twice)} files stand for several images", twice)
    folder, outside = ImageFolder(survey.image_root), []
    paths: list[Path | None] = [None] * len(names)
    for number, name in enumerate(names):
        try:
            if folder.has(name) and (folder.root / name).is_file():
                paths[number] = folder.root / name
        except DatasetError as error:
            outside.append(str(error))
    if outside:
        say("error", f"{len(outside)} images are outside of their folder", outside)
    missing = [name for name, path in zip(names, paths) if path is None]
    if missing:
        say(
            "error",
            f"{len(missing)} of {len(names)} image files are not in {str(survey.image_root)!r}",
            missing,
        )
    survey.prints = [None] * len(names)
    if not decode:
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes beside Python
        results = list(pool.map(_inspect_if_there, paths))
    broken = [
        f"{name!r} ({found})" for name, found in zip(names, results) if isinstance(found, str)
    ]
    if broken:
        say("error", f"{len(broken)} image files cannot be decoded", broken)
    survey.prints = [None if isinstance(found, str) else found for found in results]
    resized = [
        f"{image['file_name']!r} is {found.size[0]} x {found.size[1]}, the json says "
        f"{image['width']} x {image['height']}"
        for image, found in zip(survey.images, survey.prints)
        if found and found.size != (image["width"], image["height"])
    ]
    if resized:
        say("error", f"{len(resized)} images have another size than the json says", resized)


def _inspect_if_there(path: Path | None) -> ImagePrint | str | None:
    return None if path is None else inspect_image(path)


def _examples(items: Sequence[Any]) -> str:
    if not items:
        return ""
    shown = "; ".join(str(item) for item in items[:MAX_EXAMPLES])
    others = len(items) - MAX_EXAMPLES
    return f": {shown}" + (f"; and {others} more" if others > 0 else "")
