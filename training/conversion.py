"""Conversion of fitted scikit-learn pipelines to one ONNX graph, one output a head, through skl2onnx.

Invariant: the graph has one float32 input and says what the pipelines say; the parity gate, not this module, vouches for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sklearn.preprocessing import FunctionTransformer, TargetEncoder

from serving.heads import Head, RegressionHead
from serving.scorer import INPUT
from training.errors import ConversionUnavailable

OPSETS = {"": 18, "ai.onnx.ml": 3}
"""Pinned, so that a newer converter doesn't silently write another graph; every onnxruntime since 1.14 runs them."""
IR_VERSION = 8
_FLOAT, _INT64 = 1, 7


def to_onnx(pipelines: dict[str, Any], heads: Sequence[Head], width: int) -> bytes:
    """Return the graph of all heads' pipelines over a float32 matrix of `width` columns, as bytes.

    Beyond skl2onnx's own steps it knows TargetEncoder and FunctionTransformer(log1p). Raises ConversionUnavailable, or
    skl2onnx's errors for a step that can't be converted.
    """
    try:
        import onnx
        import skl2onnx
        from skl2onnx.common.data_types import FloatTensorType
    except ImportError as error:
        raise ConversionUnavailable(f"{error.name} is not installed; `make env` installs requirements/training.lock") from None
    merged = _Merger()
    for head in heads:
        pipeline = pipelines[head.name]
        model = skl2onnx.convert_sklearn(
            pipeline,
            initial_types=[(INPUT, FloatTensorType([None, width]))],
            target_opset=OPSETS,
            options=None if isinstance(head, RegressionHead) else {id(pipeline.steps[-1][1]): {"zipmap": False}},
            custom_conversion_functions={TargetEncoder: _convert_target_encoder, FunctionTransformer: _convert_function},
            custom_shape_calculators={TargetEncoder: _shape_target_encoder, FunctionTransformer: _shape_function},
        )
        merged.add(model.graph, head.name)
    graph = onnx.helper.make_graph(merged.nodes, "contender", merged.inputs, merged.outputs, merged.constants)
    opsets = [onnx.helper.make_opsetid(domain, number) for domain, number in OPSETS.items()]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="contender")
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


class _Merger:
    """Joins graphs with the same input, each constant and each step once: heads that prepare features alike do it together."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._known: dict[tuple[object, ...], list[str]] = {}

    def add(self, graph: Any, name: str) -> None:
        """Add a graph; its last output (values, or probabilities after the class) becomes the output `name`."""
        self.inputs = [graph.input[0]]
        last = graph.output[-1]
        names = {INPUT: INPUT, last.name: name, "": ""}
        for constant in graph.initializer:
            content = (constant.data_type, *constant.dims, _without_name(constant))
            new = content not in self._known
            names[constant.name] = self._known.setdefault(content, [f"constant{len(self.constants)}"])[0]
            if new:
                constant.name = names[constant.name]
                self.constants.append(constant)
        for node in graph.node:
            self._add_node(node, names, last.name)
        last.name = name
        self.outputs.append(last)

    def _add_node(self, node: Any, names: dict[str, str], last: str) -> None:
        inputs = [names[each] for each in node.input]
        attributes = sorted(each.SerializeToString(deterministic=True) for each in node.attribute)
        content = (node.op_type, node.domain, *inputs, *attributes)
        if content in self._known and last not in node.output:
            names.update(zip(node.output, self._known[content], strict=True))
            return
        number = len(self.nodes)
        for place, each in enumerate(node.output):
            names.setdefault(each, f"step{number}.{place}")
        self._known.setdefault(content, [names[each] for each in node.output])
        node.name = f"{node.op_type}{number}"
        node.input[:] = inputs
        node.output[:] = [names[each] for each in node.output]
        self.nodes.append(node)


def _without_name(constant: Any) -> bytes:
    copy = type(constant)()
    copy.CopyFrom(constant)
    copy.name = ""
    content: bytes = copy.SerializeToString(deterministic=True)
    return content


def _shape_function(operator: Any) -> None:
    operator.outputs[0].type = type(operator.inputs[0].type)([None, sum(each.type.shape[1] for each in operator.inputs)])


def _convert_function(scope: Any, operator: Any, container: Any) -> None:
    """Convert the identity (how a fitted ColumnTransformer holds "passthrough") and log(1 + x)."""
    function = operator.raw_operator.func
    source, target = operator.inputs[0].full_name, operator.outputs[0].full_name
    if function is None:
        container.add_node("Identity", [source], target, op_version=13, name=scope.get_unique_operator_name("Identity"))
        return
    if getattr(function, "__name__", "") != "log1p":
        raise NotImplementedError(f"FunctionTransformer of {function!r}: only log1p and the identity are converted")
    one, sum_ = scope.get_unique_variable_name("one"), scope.get_unique_variable_name("sum")
    container.add_initializer(one, _FLOAT, [1], [1.0])
    container.add_node("Add", [source, one], sum_, op_version=14, name=scope.get_unique_operator_name("Add"))
    container.add_node("Log", [sum_], target, op_version=13, name=scope.get_unique_operator_name("Log"))


def _shape_target_encoder(operator: Any) -> None:
    encoder = operator.raw_operator
    operator.outputs[0].type = type(operator.inputs[0].type)([None, len(encoder.encodings_)])


def _convert_target_encoder(scope: Any, operator: Any, container: Any) -> None:
    """Convert to one lookup for each feature and class; codes are whole numbers, what wasn't seen gets the target's mean."""
    encoder = operator.raw_operator
    means = [float(mean) for mean in (encoder.target_mean_ if encoder.target_type_ == "multiclass" else [encoder.target_mean_])]
    encoded = []
    for feature, categories in enumerate(encoder.categories_):
        place, column, code = (scope.get_unique_variable_name(each) for each in ("place", "column", "code"))
        container.add_initializer(place, _INT64, [1], [feature])
        container.add_node(
            "ArrayFeatureExtractor",
            [operator.inputs[0].full_name, place],
            column,
            op_domain="ai.onnx.ml",
            op_version=1,
            name=scope.get_unique_operator_name("Column"),
        )
        container.add_node("Cast", [column], code, op_version=13, to=_INT64, name=scope.get_unique_operator_name("Cast"))
        for number, mean in enumerate(means):
            encoded.append(scope.get_unique_variable_name("encoded"))
            container.add_node(
                "LabelEncoder",
                [code],
                encoded[-1],
                op_domain="ai.onnx.ml",
                op_version=2,
                name=scope.get_unique_operator_name("Lookup"),
                keys_int64s=[int(category) for category in categories],
                values_floats=[float(value) for value in encoder.encodings_[feature * len(means) + number]],
                default_float=mean,
            )
    container.add_node(
        "Concat", encoded, operator.outputs[0].full_name, op_version=13, axis=1, name=scope.get_unique_operator_name("Concat")
    )
