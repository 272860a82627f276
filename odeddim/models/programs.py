"""Networks as programs in files: torch.export's .pt2 and TorchScript's .pt, loaded without running foreign code.

`torch.export.load` alone is not safe. It unpickles everything that does not look like weights, looks up any name below
`torch` as an operation (`torch.os.system` is one), evaluates sizes and guards as Python, and writes names into source
code. This module therefore checks an archive first. The graph may hold only ATen operations and arithmetic, plain names
and plain sizes, and the weights may not be pickles. Only the checked parts are packed into a new archive, which PyTorch
then loads.

TorchScript has its own interpreter, which does not run Python. The two TorchScript operations that open files are
refused.
"""

from __future__ import annotations

import io
import json
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odeddim.types import InputError

_GRAPH = "models/model.json"
_SAMPLE = "data/sample_inputs/model.pt"
_PARTS = re.compile(
    rf"{_GRAPH}|{_SAMPLE}|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)
_OPERATION = re.compile(r"torch\.ops\.aten\.(?!__|from_file|save)\w+\.(?!_)\w+|torch\.sym_(int|float|max|min|not|sum)")
_ARITHMETIC = re.compile(r"_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pos|eq|ne|lt|le|gt|ge|and_|or_)")
_NAME = re.compile(r"[\w.:\-]*")
_SIZE = re.compile(
    r"(?!.*\*\*)((Symbol|Integer|Add|Mul|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|positive|nonnegative|integer|True)\b"
    r"|'[a-z]+\d+'|[a-z]{1,2}\d+|\d+|[-+*/(),= ])*"
)
_TREE = re.compile(
    r'([\[\]{}:, \d]|"type"|"context"|"children_spec"|null|"builtins\.(tuple|list|dict)"|"null"|"\[\]")*'
)
_COMMENTS = ("metadata", "guards_code", "torch_version", "stack_trace")  # not needed to run the graph
_FOREIGN = ("as_graph", "as_operator", "as_custom_obj", "as_opaque_obj", "custom_obj")
_OPENS_FILES = re.compile(r"\b(save|from_file)\b|\bops\s*\.\s*(?!(prim|aten|quantized)\b)\w+")
_MOST_UNPACKED = 1 << 26  # bytes beyond the size of the file: only TorchScript's text is compressed

REFUSED = "could run code: save the network with torch.export.save of PyTorch 2.9 or newer, or with torch.jit.save"
EXPORTS = (int(torch.__version__.split(".")[0]), int(torch.__version__.split(".")[1])) >= (2, 9)
"""Whether this PyTorch writes a .pt2 without pickles, and reads one."""


@dataclass(frozen=True)
class Program:
    """A network from a file.

    Attributes:
        network: The network as a function.
        batch: The largest number of images in a call; None for no limit.
        fixed: Whether every call must have exactly `batch` images.
        shape: The shape (C, H, W) of the images; None if the program takes any shape.
        dtypes: The dtypes of the inputs; () if the file does not say.
        channels: The number of channels of the output; None if the file does not say.
    """

    network: Callable[..., Any]
    batch: int | None = None
    fixed: bool = False
    shape: tuple[int, ...] | None = None
    dtypes: tuple[torch.dtype, ...] = ()
    channels: int | None = None


def load_program(blob: bytes, device: torch.device, *, numbers: Container[int] = (0,)) -> Program:
    """Load the program in the bytes of a .pt2 or TorchScript file.

    Args:
        blob: The content of the file.
        device: The device that the program runs on.
        numbers: The allowed numbers of inputs (B,) after the images (B, C, H, W).

    Returns:
        The program.

    Raises:
        InputError: If the file is of neither kind, or might run code. The message continues the file's name.
        Exception: PyTorch may raise any other exception on a damaged file.
    """
    if not blob.startswith(b"PK"):
        kind = "is a pickle, which" if blob.startswith(b"\x80") else "is not a program of PyTorch;"
        raise InputError(f"{kind} {REFUSED if kind.endswith('which') else REFUSED.partition(': ')[2]}")
    parts = _unpacked(blob)
    if _GRAPH in parts:
        if not EXPORTS:
            raise InputError(f"is read by PyTorch 2.9 or newer, not by {torch.__version__}: install a newer one")
        return _exported(parts, device, numbers)
    if "constants.pkl" in parts and any(name.startswith("code/") for name in parts):
        return _script(parts, device)
    raise InputError(f"holds a pickle, as torch.save writes it, which {REFUSED}")


def _unpacked(blob: bytes) -> dict[str, bytes]:
    """Return the files in an archive by name, without the folder that contains them."""
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        files = [info for info in archive.infolist() if not info.is_dir()]
        if sum(info.file_size for info in files) > len(blob) + _MOST_UNPACKED:
            raise InputError("would be far larger when unpacked than a network that PyTorch saved: save it again")
        return {info.filename.partition("/")[2]: archive.read(info) for info in files}


def _packed(parts: dict[str, bytes]) -> io.BytesIO:
    """Pack only these files into a new archive. Two readers may see different files in the original archive."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, part in parts.items():
            archive.writestr(f"program/{name}", part)
    content.seek(0)
    return content


# torch.export.


def _exported(parts: dict[str, bytes], device: torch.device, numbers: Container[int]) -> Program:
    for name in parts:
        if not _PARTS.fullmatch(name):
            raise InputError(f"holds {name[:80]!r}, which is not part of an exported network and {REFUSED}")
    for kind in ("weights", "constants"):
        stored = json.loads(parts[f"data/{kind}/model_{kind}_config.json"])["config"].values()
        if any(item["use_pickle"] or f"data/{kind}/{item['path_name']}" not in parts for item in stored):
            raise InputError(f"holds {kind} as a pickle, which {REFUSED}")
    try:
        torch.load(io.BytesIO(parts[_SAMPLE]), weights_only=True)  # PyTorch unpickles everything if this fails
    except pickle.UnpicklingError as error:
        raise InputError(f"holds a sample input that is not a tensor and {REFUSED}") from error
    graph = _without_comments(json.loads(parts[_GRAPH]))
    for word in _suspicious(graph, ""):
        raise InputError(f"holds {word[:80]!r}, which does not belong in the graph of a network and {REFUSED}")
    silent = logging.root.manager.disable
    logging.disable(logging.WARNING)  # PyTorch logs a traceback for a damaged file, besides raising an error
    try:
        program = torch.export.load(_packed({**parts, _GRAPH: json.dumps({**graph, "guards_code": []}).encode()}))
    finally:
        logging.disable(silent)
    nodes = list(program.graph.nodes)
    if any(value.device.type != device.type for node in nodes if isinstance(value := node.meta.get("val"), Tensor)):
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    for node in nodes:
        if _draws(node):
            raise InputError(f"draws random numbers ({node.target}): export the network after network.eval()")
    inputs = [node.meta["val"] for node in nodes if node.name in program.graph_signature.user_inputs]
    if len(inputs) - 1 not in numbers or [value.ndim for value in inputs] != [4, *[1] * (len(inputs) - 1)]:
        wanted = (
            "images (B, C, H, W), labels (B,) and perhaps classes (B,)"
            if 1 in numbers
            else "one tensor of images (B, C, H, W)"
        )
        raise InputError(f"does not take {wanted}: export it with these inputs")
    batch, *sizes = inputs[0].shape
    outputs = [node.meta["val"] for node in nodes if node.name in program.graph_signature.user_outputs]
    bounds = None if isinstance(batch, int) else program.range_constraints.get(batch.node.expr)
    most = None if bounds is None or not bounds.upper.is_Integer else int(bounds.upper)
    return Program(
        program.module(),
        batch if isinstance(batch, int) else most,
        isinstance(batch, int),
        tuple(sizes) if all(isinstance(size, int) for size in sizes) else None,
        tuple(value.dtype for value in inputs),
        outputs[0].shape[1] if outputs and outputs[0].ndim > 1 else None,
    )


def _draws(node: torch.fx.Node) -> bool:
    """Return whether an operation draws random numbers. Dropout that is switched off draws none."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    given = {one.name: one.default_value for one in arguments}
    given |= dict(zip(given, node.args, strict=False)) | node.kwargs
    return given.get("train") is not False and given.get("dropout_p") != 0


def _without_comments(graph: Any) -> Any:
    """Return the graph without stack traces, module calls and guards, which are not needed to run it."""
    graph = {key: value for key, value in graph.items() if key not in _COMMENTS}
    module = graph["graph_module"]
    nodes = [{**node, "metadata": {}} for node in module["graph"]["nodes"]]
    calls = [call for call in module["module_call_graph"] if call["fqn"] == ""]
    module = {**module, "graph": {**module["graph"], "nodes": nodes}, "module_call_graph": calls, "metadata": {}}
    return {**graph, "graph_module": module}


def _suspicious(value: Any, key: str) -> Iterator[str]:
    """Yield the texts of a graph that PyTorch might read as more than a name, an ATen operation or a size."""
    if isinstance(value, dict):
        for inner, item in value.items():
            if not _NAME.fullmatch(inner) or (inner in _FOREIGN and item is not None):
                yield inner
            yield from _suspicious(item, inner)
    elif isinstance(value, list):
        for item in value:
            yield from _suspicious(item, key)
    elif isinstance(value, str):
        if key == "target" and value:
            good = _OPERATION.fullmatch(value) or _ARITHMETIC.fullmatch(value)
        else:
            good = {"expr_str": _SIZE, "in_spec": _TREE, "out_spec": _TREE}.get(key, _NAME).fullmatch(value)
        if not good:
            yield value


# TorchScript.


def _script(parts: dict[str, bytes], device: torch.device) -> Program:
    for name, part in parts.items():
        if name.startswith("code/") and name.endswith(".py"):
            text = re.sub(r'"(\\.|[^"\\])*"', '""', part.decode())
            if found := _OPENS_FILES.search(text):
                raise InputError(f"holds {found[0]!r}, an operation that may open files: save the network without it")
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning):  # TorchScript is deprecated, but such files remain in use
            warnings.simplefilter("ignore", kind)
        module = torch.jit.load(_packed(parts), map_location=device)  # type: ignore[no-untyped-call]
    return Program(module.eval())
