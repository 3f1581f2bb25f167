"""Names and signatures that configs, checkpoints and other people's code rely on (DESIGN 4)."""

import inspect
from pydoc import locate

import pytest
from detectron2.utils.registry import _convert_target_to_string

# Names that a config saves as `_target_`. detectron2 writes the shortest package prefix that
# exposes an object, so one more re-export anywhere would change files people already have.
SAVED = [
    "projects.aligndetr.modeling.AlignDETR",
    "projects.aligndetr.modeling.Transformer",
    "projects.aligndetr.modeling.TransformerDecoder",
    "projects.aligndetr.modeling.TransformerEncoder",
    "projects.align_dab_detr.modeling.AlignDABDETR",
    "projects.align_dab_detr.modeling.DabDetrTransformer",
    "projects.align_dab_detr.modeling.DabDetrTransformerDecoder",
    "projects.align_dab_detr.modeling.DabDetrTransformerEncoder",
    "aligndetr.criterions.AlignDETRCriterion",
    "aligndetr.criterions.BaseCriterion",
    "aligndetr.criterions.HybridCriterion",
    "aligndetr.criterions.ManyToOneCriterion",
    "aligndetr.criterions.TwoStageCriterion",
    "aligndetr.matchers.MixedMatcher",
    "aligndetr.modeling.ChannelMapper",
    "aligndetr.modeling.ResNet",
    "aligndetr.modeling.SimpleFeaturePyramid",
    "aligndetr.modeling.SwinTransformer",
    "aligndetr.modeling.TimmBackbone",
    "aligndetr.modeling.ViT",
    "aligndetr.modeling.dilated_stages",
    "aligndetr.layers.BaseTransformerLayer",
    "aligndetr.layers.ConditionalCrossAttention",
    "aligndetr.layers.ConditionalSelfAttention",
    "aligndetr.layers.FFN",
    "aligndetr.layers.MLP",
    "aligndetr.layers.MultiScaleDeformableAttention",
    "aligndetr.layers.MultiheadAttention",
    "aligndetr.layers.PositionEmbeddingSine",
    "aligndetr.layers.TransformerLayerSequence",
    "aligndetr.data.DetrDatasetMapper",
    "aligndetr.data.build_detection_test_loader",
    "aligndetr.data.build_detection_train_loader",
    "aligndetr.data.get_detection_dataset",
    "aligndetr.data.register_dataset",
    "aligndetr.engine.backbone_lr_factor",
    "aligndetr.engine.cosine_lr",
    "aligndetr.engine.multi_step_lr",
    "aligndetr.evaluation.AlignmentEvaluator",
    "aligndetr.evaluation.COCOEvaluator",
]

# Names that code imports; where they are defined may change.
IMPORTED = [
    "aligndetr.layers.box_cxcywh_to_xyxy",
    "aligndetr.layers.box_iou",
    "aligndetr.layers.box_xyxy_to_cxcywh",
    "aligndetr.layers.elementwise_giou",
    "aligndetr.layers.elementwise_iou",
    "aligndetr.layers.generalized_box_iou",
    "aligndetr.layers.get_sine_pos_embed",
    "aligndetr.layers.masks_to_boxes",
    "aligndetr.layers.multi_scale_deformable_attn",
    "aligndetr.layers.multi_scale_deformable_attn_pytorch",
    "aligndetr.losses.IABCELoss",
    "aligndetr.losses.IA_BCE_loss",
    "aligndetr.losses.get_local_rank",
    "aligndetr.utils.get_world_size",
    "aligndetr.utils.inverse_sigmoid",
    "aligndetr.utils.is_dist_avail_and_initialized",
    "aligndetr.data.class_names",
    "aligndetr.config.apply_overrides",
    "aligndetr.config.check_targets",
    "aligndetr.config.coco_schedule",
    "aligndetr.config.config_from_yaml",
    "aligndetr.config.config_to_yaml",
    "aligndetr.config.get_config",
    "aligndetr.config.load_config",
    "aligndetr.config.save_config",
    "aligndetr.engine.Trainer",
    "aligndetr.engine.do_test",
    "aligndetr.engine.do_train",
    "aligndetr.inference.Predictor.from_checkpoint",
    "aligndetr.inference.Predictor.from_config",
]

ALIGN_DETR = "projects.aligndetr.modeling.AlignDETR"
TRANSFORMER = "projects.aligndetr.modeling.Transformer"
CRITERION = "aligndetr.criterions.AlignDETRCriterion"

# Leading arguments, in order; what follows them must have a default.
ARGUMENTS = {
    "aligndetr.layers.multi_scale_deformable_attn": (
        "value spatial_shapes sampling_locations attention_weights"
    ),
    "aligndetr.layers.multi_scale_deformable_attn_pytorch": (
        "value spatial_shapes sampling_locations attention_weights"
    ),
    "aligndetr.losses.IA_BCE_loss": (
        "src_logits pos_idx_c src_boxes target_boxes indices avg_factor alpha gamma w_prime=1"
    ),
    "aligndetr.losses.IABCELoss.forward": "self pred_logits pred_boxes targets indices num_boxes",
    "aligndetr.losses.get_local_rank": "quality indices",
    "aligndetr.matchers.MixedMatcher.forward": "self outputs targets gt_copy=1",
    f"{CRITERION}.forward": "self outputs targets dn_metas",
    f"{CRITERION}.get_loss": "self outputs targets num_boxes layer_spec specify_indices=None",
    f"{ALIGN_DETR}.prepare_for_cdn": (
        "self targets dn_number label_noise_ratio box_noise_scale num_queries num_classes "
        "hidden_dim label_enc"
    ),
    f"{TRANSFORMER}.forward": (
        "self multi_level_feats multi_level_masks multi_level_pos_embeds query_embed attn_masks"
    ),
}

METHODS = [
    f"{CRITERION}.compute_dn_loss",
    f"{ALIGN_DETR}.prepare_for_cdn",
    f"{ALIGN_DETR}.prepare_targets",
    f"{ALIGN_DETR}.dn_post_process",
    f"{ALIGN_DETR}.preprocess_image",
    f"{ALIGN_DETR}.inference",
    f"{ALIGN_DETR}._set_aux_loss",
    f"{TRANSFORMER}.get_reference_points",
    f"{TRANSFORMER}.get_valid_ratio",
    f"{TRANSFORMER}.gen_encoder_output_proposals",
]


@pytest.mark.parametrize("name", SAVED)
def test_saved_name_is_stable(name):
    assert _convert_target_to_string(locate(name)) == name


@pytest.mark.parametrize("name", IMPORTED + METHODS)
def test_name_exists(name):
    assert callable(locate(name))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_are_stable(name):
    found = list(inspect.signature(locate(name)).parameters.values())
    expected = [argument.partition("=") for argument in ARGUMENTS[name].split()]
    assert [p.name for p in found[: len(expected)]] == [argument for argument, _, _ in expected]
    for parameter, (_, has_default, default) in zip(found, expected, strict=False):
        assert not has_default or repr(parameter.default) == default, parameter
    added = [p.name for p in found[len(expected) :] if p.default is p.empty]
    assert added == [], "an argument added later needs a default"
