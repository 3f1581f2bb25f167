"""Float16 where it is safe: weights, and the products of them. Everything else stays float32."""

import re

from aligndetr.utils.extras import require

PRODUCTS = ("Conv", "Gemm", "MatMul")
KEPT = re.compile(r"/(sampling_offsets|bbox_embed\.\d+|ref_point_head)/")
"""Modules whose weights stay float32: offsets of sampling locations, box refinement, and what reads
the sine embedding of boxes. What has no weights stays so in any case: normalisation of images,
norms, softmax, sampling, sine embeddings, boxes, scores and their ranking."""


def to_half(model):
    """Convert an ONNX model of `to_onnx`, which is changed.

    Convolutions and matrix products with weights take float16 and give float32, but for those in
    modules that match `KEPT`. Their weights are saved in float16, half the file.

    Args:
        model: `onnx.ModelProto` in float32.

    Returns:
        The model.
    """
    onnx = require("onnx", "export", "ONNX")
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    weights = {
        tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == single
    }
    nodes, casts, halved = [], {}, {}
    for node in model.graph.node:
        is_product = node.op_type in PRODUCTS and any(name in weights for name in node.input)
        if not is_product or KEPT.search(node.name):
            nodes.append(node)
            continue
        for index, name in enumerate(node.input):
            if name in weights:
                if name not in halved:
                    array = onnx.numpy_helper.to_array(weights[name]).astype("float16")
                    halved[name] = onnx.numpy_helper.from_array(array, f"{name}_half")
                node.input[index] = halved[name].name
            elif name:
                if name not in casts:
                    casts[name] = f"{name}_half"
                    nodes.append(onnx.helper.make_node("Cast", [name], [casts[name]], to=half))
                node.input[index] = casts[name]
        output, node.output[0] = node.output[0], f"{node.output[0]}_product"
        nodes += [node, onnx.helper.make_node("Cast", [node.output[0]], [output], to=single)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(halved.values())
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.graph.value_info[:]  # types that were inferred before
    return model
