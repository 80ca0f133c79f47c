"""Write a BERT sentence encoder as an ONNX graph from its configuration and weights; no torch.

Input ``tokens`` and ``mask`` (batch, length) int64; output ``vectors`` (batch, width) float32,
mean-pooled over the mask and L2-normalised. The graph uses ONNX Runtime's own transformer
operators (domain ``com.microsoft``): they are what its optimiser would fuse the plain ones into, if
it recognised them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

Array = npt.NDArray[Any]

GRAPH_FILE = "model.onnx"
OPSET = 17
IR_VERSION = 8
MICROSOFT = "com.microsoft"


def build_encoder(source: Path, target: Path) -> None:
    """Write ``model.onnx`` into ``target`` from ``config.json`` and ``model.safetensors``.

    Raises ``ValueError`` for a configuration that is not a BERT with absolute positions and GELU.
    """
    config = json.loads((source / "config.json").read_text("utf-8"))
    kind = (config["model_type"], config["hidden_act"], config["position_embedding_type"])
    if kind != ("bert", "gelu", "absolute"):
        raise ValueError(f"not a BERT encoder that can be built here: {kind}")
    graph = _Graph(load_file(source / "model.safetensors"), float(config["layer_norm_eps"]))
    hidden = graph.embed()
    for layer in range(config["num_hidden_layers"]):
        hidden = graph.layer(f"encoder.layer.{layer}", hidden, config["num_attention_heads"])
    graph.pool(hidden)
    onnx.save(graph.model(config["hidden_size"]), target / GRAPH_FILE)


class _Graph:
    """Nodes and weights, in the order in which they are added."""

    def __init__(self, weights: dict[str, Array], epsilon: float) -> None:
        self.weights = weights
        self.epsilon = epsilon
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def model(self, width: int) -> onnx.ModelProto:
        shape = ["batch", "length"]
        graph = helper.make_graph(
            self.nodes,
            "sentence-encoder",
            [
                helper.make_tensor_value_info(x, TensorProto.INT64, shape)
                for x in ("tokens", "mask")
            ],
            [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", width])],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)

    def embed(self) -> str:
        """Sum token, position and segment embeddings; every token is of segment 0."""
        self.add("Cast", ["mask"], "mask32", to=TensorProto.INT32)
        words = self.weight("embeddings.word_embeddings.weight")
        positions = self.constant(
            "positions",
            self.weights["embeddings.position_embeddings.weight"]
            + self.weights["embeddings.token_type_embeddings.weight"][0],
        )
        self.add("Gather", [words, "tokens"], "embeddings.words")
        self.add("Shape", ["tokens"], "embeddings.length", start=1, end=2)
        start, axis = self.integers("zero", 0), self.integers("axis0", 0)
        self.add("Slice", [positions, start, "embeddings.length", axis], "embeddings.positions")
        self.add("Add", ["embeddings.words", "embeddings.positions"], "embeddings.sum")
        scale, shift = self.pair("embeddings.LayerNorm")
        return self.add(
            "LayerNormalization",
            ["embeddings.sum", scale, shift],
            "embeddings.normed",
            axis=-1,
            epsilon=self.epsilon,
        )

    def layer(self, name: str, hidden: str, heads: int) -> str:
        """Add one transformer block, normalised after each half; returns its output."""
        parts = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        weight = np.concatenate([self.weights[f"{part}.weight"].T for part in parts], axis=1)
        bias = np.concatenate([self.weights[f"{part}.bias"] for part in parts])
        inputs = [
            hidden,
            self.constant(f"{name}.qkv.weight", weight),
            self.constant(f"{name}.qkv.bias", bias),
            "mask32",
        ]
        attended = self.add("Attention", inputs, f"{name}.attended", MICROSOFT, num_heads=heads)
        mixed = self.project(f"{name}.attention.output.dense", attended)
        half = self.skip(f"{name}.attention.output", mixed, hidden)
        wide = self.project(f"{name}.intermediate.dense", half)
        active = self.add(
            "BiasGelu",
            [wide, self.weight(f"{name}.intermediate.dense.bias")],
            f"{name}.gelu",
            MICROSOFT,
        )
        return self.skip(f"{name}.output", self.project(f"{name}.output.dense", active), half)

    def project(self, name: str, value: str) -> str:
        """Multiply by a weight; the bias is left to the fused operator that follows."""
        weight = self.constant(f"{name}.transposed", self.weights[f"{name}.weight"].T)
        return self.add("MatMul", [value, weight], f"{name}.projected")

    def skip(self, name: str, value: str, residual: str) -> str:
        """Add bias and residual, then normalise."""
        scale, shift = self.pair(f"{name}.LayerNorm")
        inputs = [value, residual, scale, shift, self.weight(f"{name}.dense.bias")]
        output = f"{name}.normed"
        return self.add("SkipLayerNormalization", inputs, output, MICROSOFT, epsilon=self.epsilon)

    def pool(self, hidden: str) -> None:
        """Sum the vectors of real tokens and scale to length 1; the mean's divisor cancels out."""
        self.add("Cast", ["mask"], "mask.float", to=TensorProto.FLOAT)
        last, middle = self.integers("axis2", 2), self.integers("axis1", 1)
        self.add("Unsqueeze", ["mask.float", last], "mask.column")
        self.add("Mul", [hidden, "mask.column"], "pool.masked")
        self.add("ReduceSum", ["pool.masked", middle], "pool.sum", keepdims=0)
        self.add("LpNormalization", ["pool.sum"], "vectors", axis=-1, p=2)

    def add(self, op: str, inputs: list[str], output: str, domain: str = "", **more: Any) -> str:
        self.nodes.append(
            helper.make_node(op, inputs, [output], name=output, domain=domain, **more)
        )
        return output

    def constant(self, name: str, value: Array) -> str:
        self.constants[name] = np.ascontiguousarray(value)
        return name

    def integers(self, name: str, *values: int) -> str:
        return self.constant(name, np.array(values, dtype=np.int64))

    def weight(self, name: str) -> str:
        return self.constant(name, self.weights[name])

    def pair(self, name: str) -> tuple[str, str]:
        return self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
