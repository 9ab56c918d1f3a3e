"""A trained run as one ONNX file: what answers where there is no PyTorch, such as in a page of the book.

The graph takes `image`, uint8 [1, 3, s, s]: RGB, the whole photograph squashed to the square. Values in [0, 1] are of
another type, which ONNX's runtimes refuse; files of earlier versions took those, as float. It gives `attention`
[1, 1, s, s] (1 = normal). Of the paper's detector that is A_gen, with `reconstruction` [1, 3, s, s], `adgan` [1] (minus
D2's logit) and `attention_score` [1] (mean of 1 - A_gen); of recipes gaussian and discriminators it is 1 minus the map,
with `top` [1] and `peak` [1], of strong the same and `extent` [1]. Weights of convolutions are stored in half
precision, and everything is computed in single precision.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from attnad.detectors.gaussian import Gaussian
from attnad.detectors.paper import Paper
from attnad.detectors.strong import Strong
from attnad.errors import CheckpointError, PackageError, SettingError, remedy
from attnad.features.places import PatchGaussians
from attnad.run.run import Run
from attnad.score import Scores, check_images
from attnad.train import to_float
from attnad.training.storage import TENSOR_BYTES, read_file, write_atomically

OUTPUTS = ("attention", "reconstruction", "adgan", "attention_score")  # of the paper's detector
PLACE_OUTPUTS = ("attention", "top", "peak")  # of recipes gaussian and discriminators
STRONG_OUTPUTS = ("attention", "extent", "top", "peak")
MODEL_BYTES = 2**31  # ONNX's own limit
# What an attribute of a node may hold: no graph, which could go round for ever, and no tensor larger than what is
# written of it.
ATTRIBUTES = {"name", "type", "doc_string", "f", "i", "s", "t", "floats", "ints", "strings"}
IMAGE = "uint8 [1, 3, size, size]: RGB, 0 to 255; the whole photograph resized to the square with antialiasing"
# Metadata of the file.
FACTS = ("size", "threshold", "image", "image_score", "data", "normal_class", "recipe", "seed", "commit")


class _Graph(nn.Module):
    """Image to map and scores, as `attnad.score.score` computes them."""

    def __init__(self, run: Run):
        super().__init__()
        self.network, self.adgan = run.detector.network, run.detector.adgan
        layers = (_plain(n) if parametrize.is_parametrized(n) else n for n in self.adgan.discriminator.layers)
        self.discriminator = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = image.float() / 255
        out = self.network(x)
        logit = self.discriminator(self.adgan.masked(x, out.a_gen)).reshape(1)
        return out.a_gen, out.x_re, -logit, (1 - out.a_gen).mean((1, 2, 3))


class _GaussianGraph(nn.Module):
    """Image to map and scores, as recipes gaussian and discriminators compute them."""

    def __init__(self, run: Run):
        super().__init__()
        self.levels = copy.deepcopy(run.detector.levels)
        if run.config.shrink == 1:  # the same at each place, and most of the file
            for places in cast(Iterable[PatchGaussians], self.levels.gaussians):
                places.whitening = places.whitening[:1]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        top, peak, smaller, *_ = self.levels.answer(image.float() / 255)
        return 1 - smaller[:, None], top, peak


class _SurpriseGraph(nn.Module):
    """Image to map and scores, as recipe strong computes them."""

    def __init__(self, run: Run):
        super().__init__()
        self.surprise = copy.deepcopy(run.detector.surprise)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        extent, top, peak, maps = self.surprise.answer(image.float() / 255)
        return 1 - maps[:, None], extent, top, peak


def _plain(layer: nn.Conv2d) -> nn.Conv2d:
    """The same convolution without spectral norm, which is an iteration in training and a constant afterwards."""
    shape = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding
    plain = nn.utils.skip_init(nn.Conv2d, *shape)  # no random numbers drawn
    plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    return plain


def export_run(run: Run, path: Path, *, commit: str = "") -> None:
    """Write a run as an ONNX file, atomically, with the facts about it in its metadata.

    Raises PackageError where the packages that write ONNX are missing, SettingError on a detector that
    has no graph, CheckpointError where a weight does not fit half precision.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 (PyTorch's exporter needs it)
    except ImportError as error:
        raise PackageError(f"ONNX files need other packages: {remedy('explore')}") from error

    run.check_whole()
    if run.region is not None:
        raise SettingError("the file's scores know no region; export a run that was trained without --region")
    graphs = {
        Paper: (_Graph, OUTPUTS),
        Gaussian: (_GaussianGraph, PLACE_OUTPUTS),
        Strong: (_SurpriseGraph, STRONG_OUTPUTS),
    }
    if type(run.detector) not in graphs:
        raise SettingError(f"runs of recipe {run.config.recipe} cannot be exported; choose another recipe's")
    graph_type, outputs = graphs[type(run.detector)]
    graph = copy.deepcopy(graph_type(run)).cpu().eval()
    image = torch.zeros(1, 3, run.config.size, run.config.size, dtype=torch.uint8)
    program = torch.onnx.export(
        graph, (image,), input_names=["image"], output_names=list(outputs), dynamo=True, verbose=False
    )
    assert program, "the exporter gives a program where it does not raise"
    model = program.model_proto
    _halve_weights(model)
    for node in model.graph.node:  # where each came from in Python, longer than the graph itself
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    model.graph.ClearField("value_info")
    del model.metadata_props[:]
    facts = {"threshold": run.facts["threshold"], "image": IMAGE, "commit": commit}
    facts |= {name: getattr(run.config, name) for name in FACTS if name not in facts}
    onnx.helper.set_model_props(model, {name: "" if facts[name] is None else str(facts[name]) for name in FACTS})
    onnx.checker.check_model(model, full_check=True)
    write_atomically(path, model.SerializeToString())


def _halve_weights(model: Any) -> None:
    """Store the weights of convolutions in half precision; a node in the graph widens each as the file is loaded."""
    import onnx

    casts = []
    for tensor in model.graph.initializer:
        if len(tensor.dims) != 4 or tensor.data_type != onnx.TensorProto.FLOAT:
            continue  # batch norm's few values keep their precision: a small variance would vanish
        name, half = tensor.name, onnx.numpy_helper.to_array(tensor).astype(np.float16)
        if not np.isfinite(half).all():
            raise CheckpointError(f"{name} holds weights beyond half precision's 65504; train again")
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@dataclass(frozen=True)
class ExportedRun:
    """A run from an ONNX file. It scores images as a `Run` does, but for the scores that are not in the file.

    facts: the file's metadata, `size` an int in pixels and `threshold` a float. sha256: of the file, in hexadecimal.
    """

    path: Path
    facts: dict[str, Any]
    sha256: str
    session: Any

    @property
    def takes_bytes(self) -> bool:
        """Whether its graph takes uint8, and not the float in [0, 1] of files of earlier versions."""
        return self.session.get_inputs()[0].type == "tensor(uint8)"

    def score(self, images: Tensor) -> Scores:
        """Score uint8 images [n, 3, s, s]; see `attnad.score.Scores`, less what is not in the file.

        Raises SettingError, saying what to pass, on other images.
        """
        check_images(images, self.facts["size"])
        x = to_float(images).contiguous()
        names = [output.name for output in self.session.get_outputs()]
        given = images.contiguous() if self.takes_bytes else x
        answers = [self.session.run(names, {"image": one[None].numpy()}) for one in given]
        if tuple(names) != OUTPUTS:
            attention, *image = (torch.from_numpy(np.concatenate(each)) for each in zip(*answers, strict=True))
            return Scores(dict(zip(names[1:], image, strict=True)), 1 - attention[:, 0])
        a_gen, x_re, adgan, attention = (
            torch.from_numpy(np.concatenate(column)) for column in zip(*answers, strict=True)
        )
        error = (x - x_re).square().mean((1, 2, 3))
        return Scores({"adgan": adgan, "attention": attention, "reconstruction": error}, 1 - a_gen[:, 0], x_re=x_re)


def load_exported(path: Path) -> ExportedRun:
    """Load a run from an ONNX file, to run on the CPU.

    Raises CheckpointError, naming the file, where it is missing, damaged or not one of `export_run`'s, and
    PackageError where onnx and onnxruntime are not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise PackageError(f"ONNX files need other packages: {remedy('explore')}") from error
    try:
        content = read_file(path, MODEL_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); make it with attnad export") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised, not printed
    options.add_session_config_entry("session.load_model_format", "ONNX")  # the one that was checked
    try:
        _check_model(onnx.load_model_from_string(content))
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        facts: dict[str, Any] = dict(session.get_modelmeta().custom_metadata_map)
        facts |= {"size": int(facts["size"]), "threshold": float(facts["threshold"])}
        s, inputs, outputs = facts["size"], session.get_inputs(), session.get_outputs()
        shapes = {"attention": [1, 1, s, s], "reconstruction": [1, 3, s, s]}
        wanted = [
            [(name, shapes.get(name, [1])) for name in names] for names in (OUTPUTS, PLACE_OUTPUTS, STRONG_OUTPUTS)
        ]
        if [(each.name, each.shape) for each in inputs] != [("image", [1, 3, s, s])]:
            raise ValueError(f"it does not take image [1, 3, {s}, {s}]")
        if [(each.name, each.shape) for each in outputs] not in wanted or not math.isfinite(facts["threshold"]):
            raise ValueError("it does not give what attnad export's do")
    except Exception as error:  # onnxruntime's own classes are private
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is no model of attnad export, or damaged ({reason}); export it again") from error
    return ExportedRun(path, facts, hashlib.sha256(content).hexdigest(), session)


def _check_model(model: Any) -> None:
    """Raise ValueError on a graph that does more than ours, which compute values of known sizes from an image.

    Tensors can lie in other files, loops need not end, and a shape that is computed can be larger than any memory.
    """
    from onnx import TensorProto, helper, shape_inference

    graph = model.graph
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    if any({field.name for field, _ in attribute.ListFields()} - ATTRIBUTES for attribute in attributes):
        raise ValueError("it has graphs within its graph")
    if model.functions or graph.sparse_initializer or any(node.domain not in ("", "ai.onnx") for node in graph.node):
        raise ValueError("it has functions, sparse tensors or operations that are no plain ONNX")
    if any(t.data_location != TensorProto.DEFAULT for t in [*graph.initializer, *(each.t for each in attributes)]):
        raise ValueError("it has values in other files")

    del graph.value_info[:]  # sizes are found, not believed
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    found = shape_inference.infer_shapes(model).graph
    sizes: dict[str, int] = {}
    for each in (*found.input, *found.value_info, *found.output):
        dims, kind = each.type.tensor_type.shape.dim, each.type.tensor_type.elem_type
        if each.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") and d.dim_value >= 0 for d in dims):
            sizes[each.name] = math.prod(dim.dim_value for dim in dims) * helper.tensor_dtype_to_np_dtype(kind).itemsize
    needed, left = 0, Counter(name for node in graph.node for name in node.input)
    for node in graph.node:
        for name in filter(None, node.output):
            if name not in sizes:
                raise ValueError(f"the size of {name} cannot be known before it is computed")
            needed += sizes[name]
        if needed > TENSOR_BYTES:
            raise ValueError(f"it would need {needed / 1e9:.0f} GB, and {TENSOR_BYTES / 1e9:.0f} is the most")
        for name in node.input:
            left[name] -= 1
            if not left[name]:
                needed -= sizes.get(name, 0)
