"""Write a BERT as an ONNX graph from its configuration and weights; no torch.

======== ============================== ========================================================
both     ``tokens``, ``mask``           in: (batch, length) int64
encoder  ``vectors``                    out: (batch, width) float32, pooled and L2-normalised
         ``words``                      out: (batch, length, width), each L2-normalised
cross-   ``segments``                   in: (batch, length) int64, 0 of the query, 1 of the text
encoder  ``scores``                     out: (batch, 1) float32 from 0 to 1
======== ============================== ========================================================

The graph uses ONNX Runtime's own transformer operators (domain ``com.microsoft``): they are what
its optimiser would fuse the plain ones into, if it recognised them. An output that is not asked for
is not computed.
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


def build_encoder(source: Path, target: Path, pooling: str = "mean") -> None:
    """Write ``model.onnx`` into ``target`` from ``config.json`` and ``model.safetensors``.

    ``pooling``: the vector of a text is the mean of its tokens', or that of the first (``cls``).
    Raises ``ValueError`` for a configuration that is not a BERT with absolute positions and GELU.
    """
    config = _config(source)
    graph = _Graph(_weights(source), float(config["layer_norm_eps"]))
    hidden = graph.body(config, graph.embed())
    graph.pool(hidden, pooling)
    graph.words(hidden)
    width = config["hidden_size"]
    outputs = {"vectors": ["batch", width], "words": ["batch", "length", width]}
    onnx.save(graph.model(("tokens", "mask"), outputs), target / GRAPH_FILE)


def build_cross_encoder(source: Path, target: Path) -> None:
    """Write ``model.onnx`` of a model that reads a query and a text together and gives a score.

    Raises ``ValueError`` as ``build_encoder``.
    """
    config = _config(source)
    graph = _Graph(_weights(source), float(config["layer_norm_eps"]))
    graph.score(graph.body(config, graph.embed(segments=True)))
    inputs = ("tokens", "mask", "segments")
    onnx.save(graph.model(inputs, {"scores": ["batch", 1]}), target / GRAPH_FILE)


def _config(source: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((source / "config.json").read_text("utf-8"))
    positions = config.get("position_embedding_type", "absolute")
    kind = (config["model_type"], config["hidden_act"], positions)
    if kind != ("bert", "gelu", "absolute"):
        raise ValueError(f"not a BERT encoder that can be built here: {kind}")
    return config


def _weights(source: Path) -> dict[str, Array]:
    """Return the weights as float32, by their names within the encoder."""
    return {
        name.removeprefix("bert."): value.astype(np.float32, copy=False)
        for name, value in load_file(source / "model.safetensors").items()
    }


class _Graph:
    """Nodes and weights, in the order in which they are added."""

    def __init__(self, weights: dict[str, Array], epsilon: float) -> None:
        self.weights = weights
        self.epsilon = epsilon
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def model(
        self, inputs: tuple[str, ...], outputs: dict[str, list[str | int]]
    ) -> onnx.ModelProto:
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "bert",
            [info(name, TensorProto.INT64, ["batch", "length"]) for name in inputs],
            [info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)

    def body(self, config: dict[str, Any], hidden: str) -> str:
        """Add all transformer blocks; returns the last one's output."""
        for layer in range(config["num_hidden_layers"]):
            hidden = self.layer(f"encoder.layer.{layer}", hidden, config["num_attention_heads"])
        return hidden

    def embed(self, *, segments: bool = False) -> str:
        """Sum token, position and segment embeddings; without segments every token is of 0."""
        self.add("Cast", ["mask"], "mask32", to=TensorProto.INT32)
        kinds = self.weights["embeddings.token_type_embeddings.weight"]
        positions = self.weights["embeddings.position_embeddings.weight"]
        table = self.constant("positions", positions if segments else positions + kinds[0])
        words = self.weight("embeddings.word_embeddings.weight")
        self.add("Gather", [words, "tokens"], "embeddings.words")
        self.add("Shape", ["tokens"], "embeddings.length", start=1, end=2)
        start, axis = self.integers("zero", 0), self.integers("axis0", 0)
        self.add("Slice", [table, start, "embeddings.length", axis], "embeddings.positions")
        total = self.add("Add", ["embeddings.words", "embeddings.positions"], "embeddings.sum")
        if segments:
            table = self.weight("embeddings.token_type_embeddings.weight")
            self.add("Gather", [table, "segments"], "embeddings.segments")
            total = self.add("Add", [total, "embeddings.segments"], "embeddings.total")
        scale, shift = self.pair("embeddings.LayerNorm")
        return self.add(
            "LayerNormalization",
            [total, scale, shift],
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

    def pool(self, hidden: str, pooling: str) -> None:
        """Make one vector of a text's and scale it to length 1."""
        if pooling == "cls":
            vector = self.first(hidden)
        else:  # the sum over real tokens: the mean's divisor cancels out
            self.add("Cast", ["mask"], "mask.float", to=TensorProto.FLOAT)
            last, middle = self.integers("axis2", 2), self.integers("axis1", 1)
            self.add("Unsqueeze", ["mask.float", last], "mask.column")
            self.add("Mul", [hidden, "mask.column"], "pool.masked")
            vector = self.add("ReduceSum", ["pool.masked", middle], "pool.sum", keepdims=0)
        self.add("LpNormalization", [vector], "vectors", axis=-1, p=2)

    def words(self, hidden: str) -> None:
        """Scale each token's vector to length 1."""
        self.add("LpNormalization", [hidden], "words", axis=-1, p=2)

    def score(self, hidden: str) -> None:
        """Judge the first token's vector."""
        pooled = self.linear("pooler.dense", self.first(hidden))
        self.add("Tanh", [pooled], "pooler.tanh")
        judged = self.linear("classifier", "pooler.tanh")
        self.add("Sigmoid", [judged], "scores")

    def first(self, hidden: str) -> str:
        """Take the first token's vector."""
        at, axis = self.constant("first", np.array(0, dtype=np.int64)), 1
        return self.add("Gather", [hidden, at], "first.vector", axis=axis)

    def linear(self, name: str, value: str) -> str:
        """Multiply by a weight and add its bias."""
        inputs = [value, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]
        return self.add("Gemm", inputs, f"{name}.linear", transB=1)

    def add(self, op: str, inputs: list[str], output: str, domain: str = "", **more: Any) -> str:
        self.nodes.append(
            helper.make_node(op, inputs, [output], name=output, domain=domain, **more)
        )
        return output

    def constant(self, name: str, value: Array) -> str:
        self.constants[name] = np.asarray(value, order="C")
        return name

    def integers(self, name: str, *values: int) -> str:
        return self.constant(name, np.array(values, dtype=np.int64))

    def weight(self, name: str) -> str:
        return self.constant(name, self.weights[name])

    def pair(self, name: str) -> tuple[str, str]:
        return self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
