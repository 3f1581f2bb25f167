"""The whole of Align-DETR as the reference formulates it, on the weights of an `AlignDETR`.

Every head on every token and layer, needed or not; padding masks, positions and reference points
computed anew in each forward pass and always applied; nn.MultiheadAttention with its weights;
spatial shapes as tensors, which a GPU is waited for; denoising laid out by loops.

It differs from the reference where the library does on purpose (docs/differences.md), so that both
give the same numbers: one size of images per batch in evaluation.
Shapes: B batch, Q queries (denoising and matching), S tokens, L levels, C embed_dim.
"""

import math

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from detectron2.modeling import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from aligndetr.modeling.denoising import draw_noise
from aligndetr.modeling.frozen_norm import _FoldedConv2d
from aligndetr.modeling.memory_format import _ChannelsFirstGroupNorm
from projects.aligndetr.modeling import AlignDETR

from .criterion import BaselineCriterion, to_xyxy
from .ms_deform_attn import deformable_attention

# Faster or more precise stand-ins of the library, by what they stand for.
PLAIN = {_FoldedConv2d: Conv2d, _ChannelsFirstGroupNorm: nn.GroupNorm}


class BaselineAlignDETR(nn.Module):
    """Called and answering as `model`, whose modules it takes over.

    Args:
        model: an `AlignDETR` of its own: it is put back into the default memory format, its norms
            after their convolutions, and its group norms are torch's again.
    """

    def __init__(self, model: AlignDETR):
        super().__init__()
        self.model = model.to(memory_format=torch.contiguous_format)
        for module in self.model.modules():
            plain = PLAIN.get(type(module))
            if plain is not None:
                module.__class__ = plain
        self.criterion = BaselineCriterion(model.criterion)

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        model = self.model
        images = self._images(batched_inputs)
        if not self.training:
            logits, boxes, _, _ = self._predict(images, None, None, None)
            return self._detections(logits[-1], boxes[-1], images, batched_inputs)
        targets = self._targets(batched_inputs)
        content = box_logits = mask = dn_metas = None
        count = 0
        if model.dn_number > 0:
            content, box_logits, mask, dn_metas = self._denoising(targets)
            count = dn_metas["dn_num"] * dn_metas["single_padding"]
        logits, boxes, enc_logits, enc_boxes = self._predict(images, content, box_logits, mask)
        outputs = _as_outputs(logits[:, :, count:], boxes[:, :, count:])
        outputs["enc_outputs"] = {"pred_logits": enc_logits, "pred_boxes": enc_boxes}
        if dn_metas is not None:
            denoised = _as_outputs(logits[:, :, :count], boxes[:, :, :count])
            dn_metas["output_known_lbs_bboxes"] = denoised
        return model.criterion.weighted(self.criterion(outputs, targets, dn_metas))

    def _images(self, batched_inputs: list[dict]) -> ImageList:
        mean, std = self.model.pixel_mean, self.model.pixel_std
        return ImageList.from_tensors(
            [(x["image"].to(mean.device) - mean) / std for x in batched_inputs]
        )

    def _targets(self, batched_inputs: list[dict]) -> list[dict[str, Tensor]]:
        targets = []
        for x in batched_inputs:
            instances = x["instances"].to(self.model.device)
            height, width = instances.image_size
            size = torch.tensor([width, height, width, height], device=self.model.device)
            x1, y1, x2, y2 = (instances.gt_boxes.tensor / size).unbind(-1)
            boxes = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], -1)
            targets.append(
                {"labels": instances.gt_classes, "boxes": boxes.to(self.model.pixel_mean.dtype)}
            )
        return targets

    def _predict(
        self,
        images: ImageList,
        content: Tensor | None,
        box_logits: Tensor | None,
        attn_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits and boxes of the N layers (N, B, Q, ...) and of the proposals (B, Q, ...)."""
        model, decoder = self.model, self.model.transformer.decoder
        features = model.neck(model.backbone(images.tensor))
        masks = _padding_masks(images, features)
        levels = _flatten(features, masks, model.position_embedding, model.transformer.level_embeds)
        memory = self._encode(levels)
        enc_logits, enc_boxes = self._propose(memory, levels)

        query = model.transformer.tgt_embed.weight[None].repeat(len(memory), 1, 1)
        query = query[:, : enc_boxes.shape[1]]
        reference = enc_boxes.detach()
        if content is not None:
            query = torch.cat([content, query], 1)
            reference = torch.cat([box_logits.sigmoid(), reference], 1)
        states, references = self._decode(query, reference, memory, levels, attn_mask)
        states[0] = states[0] + model.label_enc.weight[0, 0] * 0.0
        logits, boxes = [], []
        for index, (state, start) in enumerate(zip(states, references, strict=False)):
            logits.append(decoder.class_embed[index](state))
            boxes.append((decoder.bbox_embed[index](state) + inverse_sigmoid(start)).sigmoid())
        return torch.stack(logits), torch.stack(boxes), enc_logits, enc_boxes

    def _encode(self, levels: dict[str, Tensor]) -> Tensor:
        tokens = levels["tokens"]
        reference = _reference_points(levels["shapes"], levels["valid_ratios"])
        for layer in self.model.transformer.encoder.layers:
            tokens = deformable_attention(
                layer.attentions[0],
                tokens,
                levels["positions"],
                tokens,
                levels["padding"],
                reference,
                levels["shapes"],
            )
            tokens = layer.norms[1](_feed_forward(layer.ffns[0], layer.norms[0](tokens)))
        return tokens

    def _propose(self, memory: Tensor, levels: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (B, Q, K) and boxes (B, Q, 4) of the best tokens."""
        transformer, decoder = self.model.transformer, self.model.transformer.decoder
        unusable, proposals = _proposals(levels["padding"], levels["shapes"], memory.dtype)
        output_memory = memory.masked_fill(unusable, 0.0)
        output_memory = transformer.enc_output_norm(transformer.enc_output(output_memory))
        scores = decoder.class_embed[-1](output_memory)
        boxes = decoder.bbox_embed[-1](output_memory) + proposals
        count = min(transformer.two_stage_num_proposals, scores.shape[1])
        chosen = scores.max(-1).values.topk(count, dim=1).indices[..., None]
        state = output_memory.gather(1, chosen.repeat(1, 1, output_memory.shape[-1]))
        boxes = boxes.gather(1, chosen.repeat(1, 1, 4)).sigmoid()
        return decoder.class_embed[-1](state), boxes

    def _decode(
        self,
        query: Tensor,
        reference: Tensor,
        memory: Tensor,
        levels: dict[str, Tensor],
        attn_mask: Tensor | None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Normed states of the N layers; N + 1 boxes: the first, and those after each layer."""
        decoder = self.model.transformer.decoder
        ratios = torch.cat([levels["valid_ratios"], levels["valid_ratios"]], -1)[:, None]
        states, references = [], [reference]
        for index, layer in enumerate(decoder.layers):
            scaled = reference[:, :, None] * ratios
            sine = _sine_of_boxes(scaled[:, :, 0], decoder.embed_dim // 2)
            query_pos = decoder.ref_point_head(sine)
            positioned = query + query_pos
            # The weights (B, Q, Q) come with it, averaged over heads, and nobody reads them.
            attended, _ = layer.attentions[0].attn(
                positioned, positioned, query, attn_mask=attn_mask, need_weights=True
            )
            query = layer.norms[0](query + layer.attentions[0].proj_drop(attended))
            query = deformable_attention(
                layer.attentions[1],
                query,
                query_pos,
                memory,
                levels["padding"],
                scaled,
                levels["shapes"],
            )
            query = layer.norms[2](_feed_forward(layer.ffns[0], layer.norms[1](query)))
            refined = (decoder.bbox_embed[index](query) + inverse_sigmoid(reference)).sigmoid()
            reference = refined.detach()
            states.append(decoder.norm(query))
            references.append(refined)
        return states, references

    def _denoising(self, targets: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor, Tensor, dict]:
        """Content (B, D, C), box logits (B, D, 4), mask (D + Q, D + Q), what the criterion asks."""
        model = self.model
        counts = [int(len(target["labels"])) for target in targets]
        most = max(counts)
        groups = max(1, model.dn_number // most)
        labels = torch.cat([target["labels"] for target in targets]).repeat(2 * groups)
        boxes = torch.cat([target["boxes"] for target in targets]).repeat(2 * groups, 1)
        draws = draw_noise(
            len(labels), model.num_classes, model.label_noise_ratio, model.box_noise_scale
        )
        if draws.flip_probability is not None:
            flipped = torch.nonzero(draws.flip_probability < model.label_noise_ratio * 0.5)
            labels = labels.scatter(
                0, flipped.view(-1).to(labels.device), draws.new_label.to(labels)
            )
        if draws.part is not None:
            part = draws.part.view(groups, 2, -1, 4) + torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
            moves = (part.view(-1, 4) * (draws.sign * 2.0 - 1.0)).to(boxes)
            corners = to_xyxy(boxes)
            corners = corners + moves * boxes[:, 2:].repeat(1, 2) / 2 * model.box_noise_scale
            x1, y1, x2, y2 = corners.clamp(0.0, 1.0).unbind(-1)
            boxes = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], -1)

        batch, padded = len(targets), 2 * groups * most
        content = torch.zeros(batch, padded, model.embed_dim, device=boxes.device)
        content = content.to(boxes.dtype)
        box_logits = torch.zeros(batch, padded, 4, device=boxes.device, dtype=boxes.dtype)
        image = torch.cat([torch.full((count,), i) for i, count in enumerate(counts)])
        within = torch.cat([torch.tensor(range(count)) for count in counts])
        slot = torch.cat([within + most * i for i in range(2 * groups)]).to(boxes.device)
        position = (image.repeat(2 * groups).to(boxes.device), slot)
        content[position] = model.label_enc(labels)
        box_logits[position] = inverse_sigmoid(boxes)
        mask = _denoising_mask(groups, 2 * most, model.num_queries).to(boxes.device)
        return content, box_logits, mask, {"dn_num": groups, "single_padding": 2 * most}

    def _detections(
        self, logits: Tensor, boxes: Tensor, images: ImageList, batched_inputs: list[dict]
    ) -> list[dict]:
        num_classes = logits.shape[-1]
        scores = logits.sigmoid().flatten(1)
        kept = min(self.model.select_box_nums_for_evaluation, scores.shape[1])
        scores, index = scores.topk(kept, dim=1)
        query = torch.div(index, num_classes, rounding_mode="floor")
        boxes = to_xyxy(boxes.gather(1, query[..., None].repeat(1, 1, 4)))
        results = []
        for i, ((height, width), x) in enumerate(
            zip(images.image_sizes, batched_inputs, strict=True)
        ):
            result = Instances((height, width))
            result.pred_boxes = Boxes(boxes[i])
            result.pred_boxes.scale(scale_x=width, scale_y=height)
            result.scores, result.pred_classes = scores[i], index[i] % num_classes
            result = detector_postprocess(result, x.get("height", height), x.get("width", width))
            results.append({"instances": result})
        return results


def _feed_forward(ffn: nn.Module, x: Tensor) -> Tensor:
    first, second = ffn.layers[0][0], ffn.layers[1]
    return x + second(first(x).relu_())


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def _as_outputs(logits: Tensor, boxes: Tensor) -> dict:
    """(N, B, Q, ...) of all layers in the form of the criterion."""
    layers = [{"pred_logits": a, "pred_boxes": b} for a, b in zip(logits, boxes, strict=True)]
    return {**layers[-1], "aux_outputs": layers[:-1]}


def _padding_masks(images: ImageList, features: list[Tensor]) -> list[Tensor]:
    batch, _, height, width = images.tensor.shape
    mask = images.tensor.new_ones(batch, height, width)
    for i, (h, w) in enumerate(images.image_sizes):
        mask[i, :h, :w] = 0
    return [
        F.interpolate(mask[None], size=feature.shape[-2:]).to(torch.bool).squeeze(0)
        for feature in features
    ]


def _flatten(
    features: list[Tensor], masks: list[Tensor], embedding: nn.Module, level_embeds: Tensor
) -> dict[str, Tensor]:
    """Tokens and positions (B, S, C), padding (B, S), shapes (L, 2), valid_ratios (B, L, 2)."""
    tokens, positions, ratios, shapes = [], [], [], []
    for level, (feature, mask) in enumerate(zip(features, masks, strict=True)):
        height, width = feature.shape[-2:]
        shapes.append((height, width))
        tokens.append(feature.flatten(2).transpose(1, 2))
        position = _sine_of_cells(mask, embedding).flatten(2).transpose(1, 2)
        positions.append(position.to(feature.dtype) + level_embeds[level].view(1, 1, -1))
        valid_height = torch.sum(~mask[:, :, 0], 1)
        valid_width = torch.sum(~mask[:, 0, :], 1)
        ratios.append(torch.stack([valid_width / width, valid_height / height], -1))
    return {
        "tokens": torch.cat(tokens, 1),
        "positions": torch.cat(positions, 1),
        "padding": torch.cat([mask.flatten(1) for mask in masks], 1),
        "shapes": torch.as_tensor(shapes, device=tokens[0].device),
        "valid_ratios": torch.stack(ratios, 1),
    }


def _sine_of_cells(mask: Tensor, embedding: nn.Module) -> Tensor:
    """(B, C, h, w) from the cell counts of a padding mask (B, h, w)."""
    valid = ~mask
    y, x = valid.cumsum(1, dtype=torch.float32), valid.cumsum(2, dtype=torch.float32)
    y = (y + embedding.offset) / (y[:, -1:] + embedding.eps) * embedding.scale
    x = (x + embedding.offset) / (x[:, :, -1:] + embedding.eps) * embedding.scale
    features = [_sine(axis, embedding.num_pos_feats) for axis in (y, x)]
    return torch.cat(features, -1).permute(0, 3, 1, 2)


def _sine_of_boxes(boxes: Tensor, num_feats: int) -> Tensor:
    """(B, Q, 4) boxes to (B, Q, 4 * num_feats), y before x."""
    cx, cy, w, h = (boxes * (2 * math.pi)).unbind(-1)
    return torch.cat([_sine(axis, num_feats) for axis in (cy, cx, w, h)], -1)


def _sine(coordinate: Tensor, num_feats: int) -> Tensor:
    index = torch.arange(num_feats, dtype=torch.float32, device=coordinate.device)
    wavelength = 10000 ** (2 * torch.div(index, 2, rounding_mode="floor") / num_feats)
    phase = coordinate[..., None] / wavelength
    return torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], -1).flatten(-2)


def _reference_points(shapes: Tensor, valid_ratios: Tensor) -> Tensor:
    """(B, S, L, 2): the place of each token on each level."""
    points, device = [], shapes.device
    for level, (h, w) in enumerate(shapes):
        y, x = torch.meshgrid(
            torch.linspace(0.5, float(h) - 0.5, int(h), dtype=torch.float32, device=device),
            torch.linspace(0.5, float(w) - 0.5, int(w), dtype=torch.float32, device=device),
            indexing="ij",
        )
        x = x.reshape(-1)[None] / (valid_ratios[:, None, level, 0] * w)
        y = y.reshape(-1)[None] / (valid_ratios[:, None, level, 1] * h)
        points.append(torch.stack([x, y], -1))
    return torch.cat(points, 1)[:, :, None] * valid_ratios[:, None]


def _proposals(padding: Tensor, shapes: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Unusable tokens (B, S, 1) and box logits (B, S, 4), infinite where unusable."""
    proposals, start, batch = [], 0, len(padding)
    for level, (h, w) in enumerate(shapes.tolist()):
        mask = padding[:, start : start + h * w].view(batch, h, w, 1)
        start += h * w
        valid = torch.stack([(~mask[:, 0, :, 0]).sum(1), (~mask[:, :, 0, 0]).sum(1)], -1)
        y, x = torch.meshgrid(
            torch.linspace(0, h - 1, h, dtype=torch.float32, device=padding.device),
            torch.linspace(0, w - 1, w, dtype=torch.float32, device=padding.device),
            indexing="ij",
        )
        grid = torch.stack([x, y], -1)[None].expand(batch, -1, -1, -1) + 0.5
        grid = grid / valid.view(batch, 1, 1, 2)
        size = torch.ones_like(grid) * 0.05 * 2.0**level
        proposals.append(torch.cat([grid, size], -1).view(batch, -1, 4))
    boxes = torch.cat(proposals, 1)
    inside = ((boxes > 0.01) & (boxes < 0.99)).all(-1, keepdim=True)
    unusable = padding[..., None] | ~inside
    logits = torch.log(boxes / (1 - boxes)).masked_fill(unusable, float("inf"))
    return unusable, logits.to(dtype)


def _denoising_mask(groups: int, group_size: int, num_queries: int) -> Tensor:
    """True = blocked: matching queries see no denoising query, a group sees no other group."""
    count = groups * group_size
    mask = torch.zeros(count + num_queries, count + num_queries, dtype=torch.bool)
    mask[count:, :count] = True
    for group in range(groups):
        begin, end = group * group_size, (group + 1) * group_size
        mask[begin:end, :begin] = True
        mask[begin:end, end:count] = True
    return mask
