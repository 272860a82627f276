"""What an ONNX file says before onnxruntime reads it: the kinds of its operations, and the files of its weights.

The file is a protocol buffer. Only the messages that can hold an operation or a tensor are walked (onnx.proto):

    ModelProto      graph 7, training_info 20, functions 25
    GraphProto      node 1, initializer 5, sparse_initializer 15          FunctionProto   node 7, attribute_proto 11
    NodeProto       op_type 4, attribute 5                                TrainingInfo    initialization 1, algorithm 2
    AttributeProto  t 5, g 6, tensors 10, graphs 11, sparse_tensor 22, sparse_tensors 23
    SparseTensor    values 1, indices 2
    TensorProto     external_data 13, which has entries: key 1, value 2
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from odeddim.models import weights
from odeddim.types import InputError

_WITHIN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {4: "kind", 5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_DEEPEST = 100  # messages in one another, as protocol buffers have it
_NUMBER, _LONG, _BYTES, _SHORT = 0, 1, 2, 5  # how a field is written


def look_into(blob: bytes) -> tuple[set[str], dict[str, int]]:
    """The kinds of the operations in an ONNX file, and the places where it keeps weights outside itself.

    Args:
        blob: The content of the file.

    Returns:
        The kinds, such as "Conv", and the places as the file names them, with the bytes that each must have at least.

    Raises:
        ValueError: If the bytes are not those of such a file.
    """
    kinds: set[str] = set()
    places: dict[str, int] = {}
    _walk(memoryview(blob), "model", kinds, places, 0)
    return kinds, places


def _walk(message: memoryview, what: str, kinds: set[str], places: dict[str, int], depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError("its messages lie too deep in one another")
    elsewhere: dict[str, str] = {}
    for field, content in _fields(message):
        part = _WITHIN[what].get(field)
        if part == "kind":
            kinds.add(str(content, "utf-8"))
        elif part == "entry":
            entry = {number: str(words, "utf-8") for number, words in _fields(content)}
            elsewhere[entry.get(1, "")] = entry.get(2, "")
        elif part is not None:
            _walk(content, part, kinds, places, depth + 1)
    if (place := elsewhere.get("location")) is not None:
        end = int(elsewhere.get("offset", 0)) + int(elsewhere.get("length", 0))
        places[place] = max(end, places.get(place, 0))


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a message that have bytes, with their numbers."""
    at = 0
    while at < len(message):
        key, at = _number(message, at)
        field, written = key >> 3, key & 7
        if written == _NUMBER:
            _, at = _number(message, at)
            continue
        size, at = _number(message, at) if written == _BYTES else ({_LONG: 8, _SHORT: 4}.get(written, -1), at)
        if size < 0 or at + size > len(message):
            raise ValueError("a field is longer than the file")
        if written == _BYTES:
            yield field, message[at : at + size]
        at += size


def _number(message: memoryview, at: int) -> tuple[int, int]:
    """A whole number of 7 bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at == len(message):
            break
        value |= (message[at] & 127) << shift
        at += 1
        if message[at - 1] < 128:
            return value, at
    raise ValueError("a number has no end")


def beside(path: Path, places: Mapping[str, int]) -> dict[str, Path]:
    """The files in which an ONNX program keeps its weights: they must lie in its folder, or in folders of it.

    A link may lead elsewhere, as those do that Hugging Face's cache is made of: the user made it, and not the file.

    Args:
        path: The program.
        places: Where it says that they are, and how many bytes each has at least.

    Returns:
        The files by the names that the program has for them, sorted.

    Raises:
        InputError: If a place leads out of the folder, or a file is missing or too short. The message continues the
            program's name.
    """
    found = {}
    for place in sorted(places):
        steps = place.replace("\\", "/").split("/")
        if not place or not steps[0] or ".." in steps or set(place) & set(":*\0"):
            raise InputError(
                f"keeps weights in {place!r:.80}, which is not in its folder: export it with all files in one folder"
            )
        try:
            size = weights.size_of(path.parent / place, "copy it to the program's folder, under this name")
        except InputError as error:
            raise InputError(f"keeps weights in a further file, and {error}") from error
        if size < (wanted := max(places[place], 1)):
            raise InputError(
                f"keeps {wanted:,} bytes of weights or more in {path.parent / place}, which has {size:,}: copy it again"
            )
        found[place] = path.parent / place
    return found
