"""Small models and batches for tests, and access to the golden numbers."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from detectron2.modeling.backbone import BasicStem
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.structures import Boxes, Instances
from torch import nn

from aligndetr.criterions import AlignDETRCriterion, ManyToOneCriterion
from aligndetr.layers import PositionEmbeddingSine
from aligndetr.matchers import MixedMatcher
from aligndetr.modeling import ChannelMapper, ResNet
from projects.align_dab_detr.modeling import (
    AlignDABDETR,
    DabDetrTransformer,
    DabDetrTransformerDecoder,
    DabDetrTransformerEncoder,
)
from projects.aligndetr.modeling import (
    AlignDETR,
    Transformer,
    TransformerDecoder,
    TransformerEncoder,
)

GOLDEN = Path(__file__).parent / "golden"

needs_newer_dynamo = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 5),
    reason="torch.compile of torch 2.4 cannot follow is_autocast_available or os.environ.get",
)


@cache
def golden(name: str) -> dict[str, np.ndarray]:
    """All arrays of tests/golden/NAME.npz."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@cache
def golden_json(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def tensor(array: np.ndarray, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A copy of a golden array as a tensor."""
    return torch.tensor(array, dtype=dtype)


def tiny_backbone(
    norm: str = "FrozenBN", use_checkpoint: bool = False, out_features: Sequence[str] | None = None
) -> ResNet:
    """A ResNet of bottleneck blocks [1, 2, 2, 1] and a quarter of R50's channels / 2."""
    stages, in_channels = [], 16
    for stage, num_blocks in enumerate([1, 2, 2, 1]):
        out_channels = 32 * 2**stage
        stages.append(
            ResNet.make_stage(
                BottleneckBlock,
                num_blocks,
                stride_per_block=[1 if stage == 0 else 2] + [1] * (num_blocks - 1),
                in_channels=in_channels,
                bottleneck_channels=out_channels // 4,
                out_channels=out_channels,
                norm=norm,
                stride_in_1x1=False,
            )
        )
        in_channels = out_channels
    stem = BasicStem(in_channels=3, out_channels=16, norm=norm)
    names = RES if out_features is None else out_features
    return ResNet(stem, stages, out_features=names, freeze_at=1, use_checkpoint=use_checkpoint)


def tiny_model(
    embed_dim: int = 32,
    num_queries: int = 20,
    dn_number: int = 10,
    num_heads: int = 4,
    encoder_layers: int = 2,
    decoder_layers: int = 3,
    **overrides,
) -> AlignDETR:
    """The golden tiny model: 2 encoder and 3 decoder layers, 5 classes (golden README)."""
    layers = {
        "embed_dim": embed_dim,
        "num_heads": num_heads,
        "feedforward_dim": 64,
        "attn_dropout": 0.0,
        "ffn_dropout": 0.0,
    }
    criterion = AlignDETRCriterion(
        num_classes=5,
        matcher=MixedMatcher(cost_class=2.0, cost_bbox=5.0, cost_giou=2.0),
        weight_dict={
            f"loss_{name}{part}": weight
            for name, weight in {"class": 1.0, "bbox": 5.0, "giou": 2.0}.items()
            for part in ("", "_dn")
        },
        match_num=[*[2] * decoder_layers, 1],
        alpha=0.25,
        gamma=2.0,
        tau=1.5,
    )
    arguments = {
        "backbone": tiny_backbone(),
        "position_embedding": PositionEmbeddingSine(
            num_pos_feats=embed_dim // 2, temperature=10000, normalize=True, offset=-0.5
        ),
        "neck": ChannelMapper(
            input_shapes={name: {"channels": 64 << i} for i, name in enumerate(RES)},
            in_features=RES,
            out_channels=embed_dim,
            num_outs=4,
            kernel_size=1,
            norm_layer=nn.GroupNorm(math.gcd(8, embed_dim), embed_dim),
        ),
        "transformer": Transformer(
            encoder=TransformerEncoder(**layers, num_layers=encoder_layers),
            decoder=TransformerDecoder(**layers, num_layers=decoder_layers),
            two_stage_num_proposals=num_queries,
        ),
        "embed_dim": embed_dim,
        "num_classes": 5,
        "num_queries": num_queries,
        "criterion": criterion,
        "select_box_nums_for_evaluation": 30,
        "dn_number": dn_number,
        "label_noise_ratio": 0.0,
        "box_noise_scale": 0.0,
    }
    return AlignDETR(**(arguments | overrides))


def tiny_dab_model(**overrides) -> AlignDABDETR:
    """A DAB-DETR on the tiny backbone's res4: 1 encoder and 3 decoder layers, 5 classes."""
    layers = {"embed_dim": 24, "num_heads": 3, "feedforward_dim": 40, "activation": nn.PReLU()}
    arguments = {
        "backbone": tiny_backbone(out_features=["res4"]),
        "in_features": ["res4"],
        "in_channels": None,
        "position_embedding": PositionEmbeddingSine(12, temperature=20, normalize=True),
        "transformer": DabDetrTransformer(
            encoder=DabDetrTransformerEncoder(**layers, num_layers=1),
            decoder=DabDetrTransformerDecoder(**layers, num_layers=3),
        ),
        "embed_dim": 24,
        "num_classes": 5,
        "num_queries": 17,
        "criterion": ManyToOneCriterion(
            num_classes=5,
            matcher=MixedMatcher(cost_class=2.0, cost_bbox=5.0, cost_giou=2.0),
            weight_dict={"loss_class": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0},
            match_num=[1, 2, 2, 1],
            alpha=0.25,
            gamma=2.0,
            tau=1.5,
        ),
        "select_box_nums_for_evaluation": 30,
    }
    return AlignDABDETR(**(arguments | overrides))


RES = ["res3", "res4", "res5"]


def golden_tiny_model(**overrides) -> AlignDETR:
    """The tiny model with the golden weights; every key must fit."""
    model = tiny_model(**overrides)
    weights = {name: tensor(array) for name, array in golden("tiny32_weights").items()}
    for alias, name in golden_json("tiny32_keys")["aliases"].items():
        weights[alias] = weights[name]
    model.load_state_dict(weights, strict=True)
    return model


def golden_tiny_batch() -> list[dict]:
    """The two golden images with their ground truth: 128 x 160 and 112 x 144 pixels."""
    arrays, batch = golden("tiny_inputs"), []
    for index in range(2):
        image = tensor(arrays[f"image{index}"])
        height, width = arrays[f"orig_hw{index}"].tolist()
        instances = Instances(tuple(image.shape[1:]))
        instances.gt_boxes = Boxes(tensor(arrays[f"gt_boxes_xyxy_abs{index}"]))
        instances.gt_classes = tensor(arrays[f"gt_classes{index}"])
        batch.append({"image": image, "height": height, "width": width, "instances": instances})
    return batch


def random_batch(
    sizes: list[tuple[int, int]], counts: list[int], num_classes: int = 5, seed: int = 0
) -> list[dict]:
    """Noise images of `sizes` (h, w) with `counts` random boxes each."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for index, ((height, width), count) in enumerate(zip(sizes, counts, strict=True)):
        corners = torch.rand(count, 2, 2, generator=generator).sort(1).values
        corners[:, 1] += 0.05
        boxes = corners.clamp(max=1).flatten(1) * torch.tensor([width, height, width, height])
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.randint(num_classes, (count,), generator=generator)
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances, "image_id": index})
    return batch


def losses_of_training(model: nn.Module, lr: float, steps: int) -> list[dict[str, float]]:
    """Weighted losses of each of some steps on the golden batch."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    batch, found = golden_tiny_batch(), []
    for _ in range(steps):
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        found.append({name: loss.item() for name, loss in losses.items()})
    return found


@contextmanager
def queries_per_object(matcher: MixedMatcher) -> Iterator[dict[str, list[list[int]]]]:
    """What is matched within it: by name of the predictions, a count per object of each image."""
    found, match = {}, matcher.match

    def recording(requests):
        matched = match(requests)
        for request, pairs in zip(requests, matched, strict=True):
            found[request.name] = [gt.bincount().tolist() for _, gt in pairs]
        return matched

    with patch.object(matcher, "match", recording):
        yield found
