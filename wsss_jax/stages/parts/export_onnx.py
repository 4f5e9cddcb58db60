"""``wsss export --format onnx``: the network of a finished run as one file that needs no JAX.

jax2onnx converts (``pip install 'wsss-jax[onnx]'``). The file takes images of one size and
normalises them itself. It is compared with the network on an image of noise before it is written.
Not here: heads on frozen features (``segment_linear``), which are no whole networks.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wsss_jax.backbones.layers import library_convolutions
from wsss_jax.config import Record
from wsss_jax.data.classes import ClassList
from wsss_jax.data.files import write_atomic
from wsss_jax.data.provenance import inherited
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.models.scorer import HasClassMaps
from wsss_jax.run import folders, training
from wsss_jax.stages.train import trained
from wsss_jax.systems import SYSTEMS, name_of, pixels
from wsss_jax.train.state import Weights
from wsss_jax.types import Size

INSTALL = (
    "format onnx needs jax2onnx and onnxruntime: pip install 'wsss-jax[onnx]' (from a clone: "
    "pip install -e '.[onnx]')"
)

TOLERANCE = 1e-4
"""Largest difference between file and network, in units of the largest output or of 1."""

OPSET = 18
"""Of ONNX: what onnxruntime reads since version 1.14."""

_BROADCAST = frozenset({"Add", "Sub", "Mul", "Div", "Where"})
_SMALLEST = 4096  # values of a constant that is looked at


class Network(NamedTuple):
    """What is written.

    function: weights and images (1,H,W,3) in [0, 1] to the outputs that are named. backbone: for
    errors. metadata: what the file tells of itself.
    """

    function: Callable[[Weights, Array], tuple[Array, ...]]
    weights: Weights
    outputs: tuple[str, ...]
    backbone: str
    metadata: dict[str, str]


def write_onnx(run: Path, file: Path, size: Size) -> float:
    """Write the network of a run; returns the largest difference between the file and the network.

    A classifier (`wsss train`) gives logits (1,C) and, unless it reads a class token, class_maps
    (1,h,w,C), which are not rectified. A segmentation network (`wsss segment`) gives probabilities
    (1,h,w,1+C) at stride 4, background first. size: height and width of the images. Raises
    UserError without jax2onnx, for a run without a whole network, and where the network cannot be
    converted, naming it.
    """
    if min(size) < 32:
        raise UserError(f"size is {size[0]} {size[1]}, wanted a height and a width of at least 32")
    network = network_of(run)
    image = np.random.default_rng(0).random((1, *size, 3), np.float32)
    content = _converted(network, image.shape)
    found = _answers(content, image)
    wanted = [np.asarray(one) for one in jax.jit(network.function)(network.weights, image)]
    difference = 0.0
    for ours, theirs in zip(wanted, found, strict=True):
        scale = max(1.0, float(np.abs(ours).max()))
        far = float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else np.inf
        if not far <= TOLERANCE * scale:
            raise UserError(
                f"{network.backbone}: jax2onnx converts it wrongly, an output differs by {far:.1e}"
            )
        difference = max(difference, far)
    write_atomic(file, content)
    return difference


def network_of(run: Path) -> Network:
    """The network of a run of `wsss train` or `wsss segment`."""
    if not (run / "settings.json").is_file():
        raise BadFileError(
            f"{run}: no run of `wsss train` or `wsss segment`, which onnx is made of"
        )
    record = folders.record_of(run, "run the same command again")
    if "system" in record:
        return _classifier(run, record)
    if "learned_from" in record and "features" not in record:
        return _segmenter(run, record)
    raise UserError(
        f"{run} is neither a classifier nor a whole segmentation network; give a run of `wsss "
        "train`, or of `wsss segment` without --features"
    )


def _classifier(run: Path, record: Record) -> Network:
    settings, classes, state = trained(run)
    explained = SYSTEMS[name_of(settings.model)].explained(settings.model)
    structure, weights = explained.structure(len(classes)), explained.weights(state)
    maps = isinstance(structure.bind(*weights), HasClassMaps)

    def function(weights: Weights, images: Float[Array, "1 H W 3"]) -> tuple[Array, ...]:
        module = structure.bind(*weights)
        if not maps:
            return (module(images),)
        features = module.features(images)
        return module.head(features), module.class_maps(features)

    return Network(
        function,
        weights,
        ("logits", "class_maps") if maps else ("logits",),
        _backbone(record),
        _metadata("classifier", classes.names, "image labels", record),
    )


def _segmenter(run: Path, record: Record) -> Network:
    model = training.recorded(record, pixels.Segmenter).model
    classes = ClassList(tuple(record["classes"]))
    state = folders.last_state(run, pixels.template(model, len(classes)))
    structure = pixels.structure(model, len(classes))

    def function(weights: Weights, images: Float[Array, "1 H W 3"]) -> tuple[Array, ...]:
        inside = jnp.ones(images.shape[:3], bool)
        logits = pixels.scores(structure, weights, images, inside)
        return (jax.nn.softmax(logits),)

    masks = record["learned_from"]["masks"]
    return Network(
        function,
        (state.averaged, state.stats),
        ("probabilities",),
        _backbone(record),
        _metadata("segmentation", classes.mask_names(), masks, record),
    )


def _backbone(record: Record) -> str:
    model = record["settings"]["model"]
    return str(model.get("backbone") or model["classifier"]["backbone"])


def _metadata(kind: str, classes: tuple[str, ...], taught: str, record: Record) -> dict[str, str]:
    """Texts; classes and supervision are JSON."""
    supervision = {"learned_from": taught, **inherited(record)}
    return {
        "network": kind,
        "backbone": _backbone(record),
        "classes": json.dumps(classes),
        "supervision": json.dumps(supervision),
    }


def _converted(network: Network, shape: tuple[int, ...]) -> bytes:
    with _quiet():
        convert = _package("jax2onnx").to_onnx
        try:
            with library_convolutions():
                model = convert(
                    partial(network.function, network.weights),
                    [shape],
                    model_name=network.metadata["network"],
                    opset=OPSET,
                    input_names=["image"],
                    output_names=list(network.outputs),
                )
        except Exception as problem:  # of many unrelated types, by what is not supported
            raise UserError(
                f"{network.backbone}: jax2onnx cannot convert this network: {problem}"
            ) from problem
    _shrink(model.graph)
    told = network.metadata | {"size": json.dumps(shape[1:3])}
    for key, value in told.items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


def _shrink(graph: Any) -> None:
    """Store constants that repeat over a whole map once.

    jax2onnx writes biases and masks as large as the maps that they belong to: 41 MB for the 9 MB of
    MobileNetV2 at 224 pixels.
    """
    arrays = import_module("onnx.numpy_helper")
    constants = {one.name: one for one in graph.initializer}
    refused = {one.name for one in graph.output}
    for node in graph.node:
        if node.op_type not in _BROADCAST or all(name in constants for name in node.input):
            refused.update(node.input)
    for name, constant in constants.items():
        if name in refused or len(constant.dims) != 4 or np.prod(constant.dims) < _SMALLEST:
            continue
        values = arrays.to_array(constant)
        for axis in range(values.ndim):
            first = values.take([0], axis)
            values = first if (values == first).all() else values
        constant.CopyFrom(arrays.from_array(values, name))


def _answers(content: bytes, image: np.ndarray) -> list[np.ndarray]:
    runtime = _package("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors: it warns of constants that nothing uses
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as problem:
        raise UserError(INSTALL) from problem


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and log lines of jax2onnx, which are about its own code."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
