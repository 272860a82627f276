"""Networks as programs in files: torch.export's .pt2 and TorchScript's .pt, loaded without running what is in them.

`torch.export.load` unpickles whatever does not look like weights, looks up any name below `torch` as an operation
(`torch.os.system` is one), evaluates sizes and guards as Python, and writes names into source code. Here an archive is
looked through first: its graph may hold ATen operations and arithmetic, plain names and plain sizes, its weights no
pickles. What was looked at, and nothing else, is then packed anew and given to PyTorch.

TorchScript is read and run by an interpreter of its own, which knows no Python; the two of its operations that open
files are refused.
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
_COMMENTS = ("metadata", "guards_code", "torch_version", "stack_trace")  # what the graph does not need to be run
_FOREIGN = ("as_graph", "as_operator", "as_custom_obj", "as_opaque_obj", "custom_obj")
_OPENS_FILES = re.compile(r"\b(save|from_file)\b|\bops\s*\.\s*(?!(prim|aten|quantized)\b)\w+")
_MOST_UNPACKED = 1 << 26  # bytes beyond those of the file: only TorchScript's text is compressed

REFUSED = "could run code of its own: save the network with torch.export.save or torch.jit.save"


@dataclass(frozen=True)
class Program:
    """A network from a file. batch: so many images it takes at most, or exactly (`fixed`). shape: (C, H, W).

    dtypes: of its inputs, () where the file does not say; channels: of what it gives, None likewise.
    """

    network: Callable[..., Any]
    batch: int | None = None
    fixed: bool = False
    shape: tuple[int, ...] | None = None
    dtypes: tuple[torch.dtype, ...] = ()
    channels: int | None = None


def load_program(blob: bytes, device: torch.device, *, numbers: Container[int] = (0,)) -> Program:
    """The program in the bytes of a .pt2 or TorchScript file, on a device.

    Args:
        blob: the contents of the file.
        device: where the program runs.
        numbers: how many inputs (B,) it may take after its images (B, C, H, W).

    Raises:
        InputError: in words that go behind the file's name, for a file that is neither, or that might run code.
        Exception: anything else that PyTorch raises on a damaged file.
    """
    if not blob.startswith(b"PK"):
        kind = "is a pickle, which" if blob.startswith(b"\x80") else "is no program of PyTorch;"
        raise InputError(f"{kind} {REFUSED if kind.endswith('which') else REFUSED.partition(': ')[2]}")
    parts = _unpacked(blob)
    if _GRAPH in parts:
        return _exported(parts, device, numbers)
    if "constants.pkl" in parts and any(name.startswith("code/") for name in parts):
        return _script(parts, device)
    raise InputError(f"holds a pickle, as torch.save writes it, which {REFUSED}")


def _unpacked(blob: bytes) -> dict[str, bytes]:
    """The files in an archive by their names, without the folder around them."""
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        files = [info for info in archive.infolist() if not info.is_dir()]
        if sum(info.file_size for info in files) > len(blob) + _MOST_UNPACKED:
            raise InputError("would be far larger unpacked, as PyTorch writes no network: save it again")
        return {info.filename.partition("/")[2]: archive.read(info) for info in files}


def _packed(parts: dict[str, bytes]) -> io.BytesIO:
    """An archive of these files alone: two readers of one archive may see different things in it."""
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
            raise InputError(f"holds {name[:80]!r}, which is no part of an exported network and {REFUSED}")
    for kind in ("weights", "constants"):
        stored = json.loads(parts[f"data/{kind}/model_{kind}_config.json"])["config"].values()
        if any(item["use_pickle"] or f"data/{kind}/{item['path_name']}" not in parts for item in stored):
            raise InputError(f"holds {kind} as a pickle, which {REFUSED}")
    try:
        torch.load(io.BytesIO(parts[_SAMPLE]), weights_only=True)  # as PyTorch will: where that fails, it unpickles all
    except pickle.UnpicklingError as error:
        raise InputError(f"holds a sample input that is no tensor and {REFUSED}") from error
    graph = _without_comments(json.loads(parts[_GRAPH]))
    for word in _suspicious(graph, ""):
        raise InputError(f"holds {word[:80]!r}, which is no plain network's and {REFUSED}")
    silent = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of a damaged file it would print a traceback, and raise all the same
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
        raise InputError(f"does not take {wanted}: export it so")
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
    """Whether this is an operation with chance in it, other than dropout that is off."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    given = {one.name: one.default_value for one in arguments}
    given |= dict(zip(given, node.args, strict=False)) | node.kwargs
    return given.get("train") is not False and given.get("dropout_p") != 0


def _without_comments(graph: Any) -> Any:
    """The graph without what is told about it: stack traces, the modules it was written as, guards."""
    graph = {key: value for key, value in graph.items() if key not in _COMMENTS}
    module = graph["graph_module"]
    nodes = [{**node, "metadata": {}} for node in module["graph"]["nodes"]]
    calls = [call for call in module["module_call_graph"] if call["fqn"] == ""]
    module = {**module, "graph": {**module["graph"], "nodes": nodes}, "module_call_graph": calls, "metadata": {}}
    return {**graph, "graph_module": module}


def _suspicious(value: Any, key: str) -> Iterator[str]:
    """The words of a graph that might become more than a name, an ATen operation or a size when PyTorch reads them."""
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
                raise InputError(f"holds {found[0]!r}, an operation that may open files: save it without")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is, which is no news to who has such a file
        module = torch.jit.load(_packed(parts), map_location=device)  # type: ignore[no-untyped-call]
    return Program(module.eval())
