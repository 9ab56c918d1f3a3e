"""An ONNX file in place of ours reads no other file, ends, and takes no memory that cannot be known beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnad.errors import CheckpointError
from attnad.run.export import load_exported

pytest.importorskip("onnx", reason="the extra explore is not installed")
pytestmark = pytest.mark.usefixtures("elsewhere")


def answering(
    *, extra: list | None = None, outputs: tuple = ("attention", "top", "peak"), size: str = "32", **made: Any
) -> Any:
    """A model as ours are seen from outside: its last value is `top`, or what extra nodes make of it, called z."""
    from onnx import TensorProto, helper, numpy_helper

    def value(name: str, kind: int = TensorProto.FLOAT) -> Any:
        shape = {"image": [1, 3, 32, 32], "attention": [1, 1, 32, 32]}.get(name, [1])
        return helper.make_tensor_value_info(name, kind, shape)

    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Slice", ["x", "zero", "one", "one"], ["attention"]),
        helper.make_node("ReduceMean", ["x", "axes"], ["top"], keepdims=0),
        *(extra or []),
        helper.make_node("Neg", ["z" if extra else "top"], ["peak"]),
    ]
    constants = {"zero": np.array([0]), "one": np.array([1]), "axes": np.array([1, 2, 3])} | made.pop("constants", {})
    graph = helper.make_graph(
        nodes, "g", [value("image", TensorProto.UINT8)], [value(name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("evil", 1)], **made
    )
    model.ir_version = 10
    helper.set_model_props(model, {"size": size, "threshold": "0.5"})
    return model


def looped() -> list:
    """A loop that never ends."""
    from onnx import TensorProto, helper

    def values(*names: str) -> list:
        kinds = {"i": TensorProto.INT64, "go": TensorProto.BOOL, "on": TensorProto.BOOL}
        return [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), []) for name in names]

    inside = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["v"], ["w"])]
    body = helper.make_graph(inside, "b", values("i", "go", "v"), values("on", "w"))
    return [helper.make_node("Loop", ["many", "true", "top"], ["z"], body=body)]


def hostile_models() -> dict[str, Any]:
    from onnx import TensorProto, helper

    def node(kind: str, inputs: list[str], **values: Any) -> list:
        mean = helper.make_node("ReduceMean", ["big"], ["z"], keepdims=0)
        return [helper.make_node(kind, inputs, ["big"], **values), mean]

    large, shape = np.array([2**36]), {"n": np.array([2**36])}
    there = answering(extra=[helper.make_node("Add", ["top", "c"], ["z"])], constants={"c": np.ones(1, np.float32)})
    away = there.graph.initializer[-1]
    away.ClearField("raw_data")
    away.data_location = TensorProto.EXTERNAL
    away.external_data.add(key="location", value="secret.bin")
    held = helper.make_node("Constant", [], ["c"], value=away)
    believed = answering(extra=node("NonZero", ["x"])[:1] + [helper.make_node("ReduceMax", ["big"], ["z"], keepdims=0)])
    believed.graph.value_info.append(helper.make_tensor_value_info("big", TensorProto.INT64, [4, 1]))
    function = helper.make_function(
        "evil", "F", ["x"], ["y"], [helper.make_node("Neg", ["x"], ["y"])], [helper.make_opsetid("", 20)]
    )
    sparse = answering()
    sparse.graph.sparse_initializer.add(dims=large)
    return {
        "other files": there,
        "other files in a node": answering(extra=[held, helper.make_node("Add", ["top", "c"], ["z"])]),
        "a loop": answering(extra=looped(), constants={"many": np.array(2**62), "true": np.array(True)}),
        "275 GB": answering(extra=node("ConstantOfShape", ["n"]), constants=shape),
        "275 GB again": answering(extra=node("Expand", ["top", "n"]), constants=shape),
        "1229 GB": answering(
            extra=node("Resize", ["x", "", "s"]), constants={"s": np.array([1, 1, 1e4, 1e4], np.float32)}
        ),
        "a size below nothing, then 275 GB": answering(
            extra=[helper.make_node("Pad", ["x", "less"], ["unused"]), *node("ConstantOfShape", ["n"])],
            constants=shape | {"less": np.array([0, 0, 0, 0, 0, 0, 0, -(2**30)])},
        ),
        "no size": answering(extra=node("NonZero", ["x"])),
        "a size that is said": believed,
        "another's operation": answering(extra=[helper.make_node("E", ["top"], ["z"], domain="evil")]),
        "a function": answering(extra=[helper.make_node("F", ["top"], ["z"], domain="evil")], functions=[function]),
        "sparse": sparse,
        "other outputs": answering(outputs=("attention", "top")),
        "another size": answering(size="64"),
        "no number": answering(size="9" * 5000),
    }


@pytest.mark.timeout(300)
def test_models_that_do_more_than_ours_are_refused(tmp_path):
    Path("secret.bin").write_bytes(np.ones(1, np.float32).tobytes())
    path = tmp_path / "model.onnx"
    path.write_bytes(answering().SerializeToString())
    load_exported(path)  # else nothing would say why the others are refused; test_export.py loads ours
    for name, model in hostile_models().items():
        path.write_bytes(model.SerializeToString())
        with pytest.raises(CheckpointError, match="is no model of attnad export") as raised:
            load_exported(path)
        assert len(str(raised.value).splitlines()) == 1, name
        assert "ONNXRuntime" not in str(raised.value), f"{name}: it was tried"
