"""Loading into existing arrays: the target is checked against the stored tree before a byte is read.

Owns the comparison and its list of problems; the bytes are copied by whoever reads, through ``Target.copy_from``.
Called by ``s3dlio.restoring`` for ``load(into=...)``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.errors import ConfigError, ManifestError, S3dlioError
from .box import Box
from .dtensor import is_dtensor, local_part
from .dtypes import numpy_name
from .jax_leaf import KEY, is_jax_array
from .leaf import MAX_DEPTH, Node, Refusal, Spec, Target
from .numpy_leaf import LateTarget, array_target, text_over
from .restore import build, build_key
from .table import Table
from .tf_leaf import describe, is_tensorflow, variable_target
from .torch_leaf import is_tensor, tensor_target

_MOST_PROBLEMS = 1000  # lines of one message
_IMMUTABLE = "cannot be written in place: load it with s3dlio.frameworks.jax.restore"


@dataclass(frozen=True, slots=True)
class Into:
    """A target that fits: fill every one of ``targets``, then call ``finish``.

    A leaf may have several targets (tied when it was saved, apart now), and a target takes all bytes of its leaf, or
    those of its box in ``boxes``, by its number among the targets.
    """

    targets: list[Target]
    boxes: dict[int, Box]
    _tree: Node
    _table: Table
    _placed: list[Any]

    def finish(self) -> Any:
        """The state: the target's arrays (the same objects) in the stored containers, all else from the checkpoint."""
        placed = iter(self._placed)

        def leaf(_: int) -> Any:
            value = next(placed)
            return value.value() if isinstance(value, LateTarget) else value

        return build(self._tree, len(self._table), leaf)


def plan_into(tree: Node, table: Table, target: object) -> Into:
    """Match ``target`` with the stored tree; writes nothing.

    Every stored array needs an array of its dtype and shape at the same place (NumPy, torch, a ``tf.Variable``),
    and every place of ``target`` a stored counterpart; stored scalars and texts need none and are taken from the
    checkpoint. Raises ``ConfigError`` with all problems: missing, extra, other dtype or shape, read-only or expanded
    targets, sparse tensors, targets that share memory where the stored arrays do not. ``ManifestError`` for a
    malformed tree.
    """
    match = _Match(table)
    match.node(tree, target, "state", 0)
    problems = match.problems
    if problems:
        shown = "\n  ".join(problems[:_MOST_PROBLEMS])
        more = f"\n  ... and {len(problems) - _MOST_PROBLEMS} more" if len(problems) > _MOST_PROBLEMS else ""
        raise ConfigError(f"the target of into= does not fit the checkpoint; nothing was written:\n  {shown}{more}")
    return Into(match.targets, match.boxes, tree, table, match.placed)


class _TextTarget(LateTarget):
    """A long bytes, bytearray or string."""

    __slots__ = ("_spec",)

    def __init__(self, index: int, spec: Spec) -> None:
        super().__init__(index, np.empty(spec.nbytes, np.uint8))
        self._spec = spec

    def value(self) -> Any:
        try:
            return text_over(self.array, self._spec, 0)
        except ValueError as error:
            raise ManifestError(f"leaf {self.index}: a string that is not UTF-8") from error


class _Match:
    """Walks the stored tree in the order in which ``build`` will."""

    def __init__(self, table: Table) -> None:
        self._specs = table.specs
        self.problems: list[str] = []
        self.targets: list[Target] = []
        self.boxes: dict[int, Box] = {}
        self.placed: list[Any] = []
        self._taken: dict[Any, tuple[int, str]] = {}

    def node(self, node: Node, target: object, path: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ManifestError(f"tree: more than {MAX_DEPTH} levels")
        if type(node) is int and not self._is_text(node):
            self._array(node, target, path)
        elif not self._holds_array(node) and not _target_holds_array(target):
            self._take(node)
        elif type(node) is dict and "sparse" in node:
            self.problems.append(f"{path}: a sparse tensor cannot be loaded in place")
        elif type(node) is dict and KEY in node:
            self.problems.append(f"{path}: a PRNG key {_IMMUTABLE}")
        else:
            self._container(node, target, path, depth)

    def _is_text(self, index: int) -> bool:
        if not 0 <= index < len(self._specs):
            raise ManifestError(f"tree: leaf {index} of {len(self._specs)}")
        return self._specs[index].form in ("bytes", "bytearray", "str")

    def _take(self, node: Node) -> None:
        """Take a part without arrays from the checkpoint; its long texts need memory."""

        def leaf(index: int) -> None:
            text = _TextTarget(index, self._specs[index])
            self.targets.append(text)
            self.placed.append(text)

        build(node, len(self._specs), leaf)

    def _array(self, index: int, target: object, path: str) -> None:
        spec = self._specs[index]
        self.placed.append(target)
        try:
            found = _describe(target)
            if found != (spec.dtype, spec.shape):
                self.problems.append(
                    f"{path}: stored {spec.dtype} {list(spec.shape)}, target {found[0]} {list(found[1])}"
                )
                return
            memory, box = _memory(target)
            made, identity = _target_maker(memory)(index, memory)
        except S3dlioError as error:
            self.problems.append(f"{path}: {error}")
            return
        other = self._taken.setdefault(identity, (index, path))
        if other[0] != index:
            self.problems.append(f"{path}: shares its memory with {other[1]}, but they were stored apart")
        elif other[1] == path:
            if box is not None:
                self.boxes[len(self.targets)] = box
            self.targets.append(made)
            if isinstance(made, LateTarget):
                self.placed[-1] = made

    def _container(self, node: Node, target: object, path: str, depth: int) -> None:
        opened = open_node(node)
        if opened is None:
            self.problems.append(f"{path}: the checkpoint holds no array here, the target {_kind(target)}")
            return
        kind, children = opened
        if not isinstance(target, {"dict": dict, "list": list, "tuple": tuple}[kind]):
            self.problems.append(f"{path}: stored a {kind}, target {_kind(target)}")
            return
        places: dict[Any, Any] = target if isinstance(target, dict) else dict(enumerate(target))
        for key, child in children:
            inner = f"{path}[{key!r}]"
            if key in places:
                self.node(child, places[key], inner, depth + 1)
            elif self._holds_array(child):
                self.problems.append(f"{inner}: missing in the target")
            else:
                self._take(child)
        stored = {key for key, _ in children}
        self.problems += [f"{path}[{key!r}]: not in the checkpoint" for key in places if key not in stored]
        if type(node) is dict and "metadata" in node:
            if self._holds_array(node["metadata"]):
                raise ManifestError("tree: arrays in the metadata of a state dict cannot be loaded in place")
            self._take(node["metadata"])

    def _holds_array(self, node: Node) -> bool:
        waiting = [node]
        while waiting:
            item = waiting.pop()
            if type(item) is int:
                if not self._is_text(item):
                    return True
            elif type(item) is dict and ("sparse" in item or KEY in item):
                return True
            else:
                opened = open_node(item)
                waiting.extend(child for _, child in (opened[1] if opened else ()))
                if type(item) is dict and "metadata" in item:
                    waiting.append(item["metadata"])
        return False


def open_node(node: Node) -> tuple[str, list[tuple[Any, Node]]] | None:
    """A container's kind (dict, list, tuple) and its children by key, None for a scalar. Raises ``ManifestError``."""
    if type(node) is list:
        return "list", list(enumerate(node))
    if type(node) is not dict or not node:
        return None
    tag, payload = next(iter(node.items()))
    if tag in ("dict", "ordered") and type(payload) is dict:
        return "dict", list(payload.items())
    if tag in ("items", "ordered_items") and type(payload) is list and len(payload) % 2 == 0:
        return "dict", [(build_key(key), child) for key, child in zip(payload[::2], payload[1::2], strict=True)]
    if tag == "tuple" and type(payload) is list:
        return "tuple", list(enumerate(payload))
    if tag in ("dict", "ordered", "items", "ordered_items") or (tag == "tuple" and type(payload) is not dict):
        raise ManifestError(f"tree: a malformed {tag} node")
    return None


def _target_holds_array(target: object) -> bool:
    kinds = (is_tensor, is_jax_array, is_tensorflow)
    return any(isinstance(item, np.ndarray) or any(kind(item) for kind in kinds) for item in _target_items(target))


def _target_items(target: object) -> Iterator[object]:
    waiting = [(target, 0)]
    while waiting:
        item, depth = waiting.pop()
        yield item
        if depth > MAX_DEPTH:
            raise ConfigError(f"the target of into= has more than {MAX_DEPTH} levels, or contains itself")
        if isinstance(item, dict):
            waiting.extend((child, depth + 1) for child in item.values())
        elif isinstance(item, list | tuple):
            waiting.extend((child, depth + 1) for child in item)


def _describe(target: object) -> tuple[str, tuple[int, ...]]:
    """Dtype name and shape of an array; ``ConfigError`` if it cannot be loaded into."""
    if isinstance(target, np.ndarray):
        return numpy_name(target.dtype), target.shape
    if is_jax_array(target):
        raise ConfigError(f"an array of JAX {_IMMUTABLE}")
    if is_tensorflow(target):
        return describe(target)
    if not is_tensor(target):
        raise ConfigError(f"the checkpoint holds an array here, the target {_kind(target)}")
    torch: Any = sys.modules["torch"]
    tensor: Any = target
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) and not is_dtensor(tensor):
        raise ConfigError(f"a tensor subclass ({_kind(target)}) cannot be loaded into")
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise ConfigError("a sparse or nested tensor cannot be loaded in place")
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)


def _memory(target: Any) -> tuple[Any, Box | None]:
    """What is written to, and which box of the leaf goes there: of a distributed tensor what this rank holds of it."""
    if not is_dtensor(target):
        return target, None
    try:
        local, part = local_part(target)
    except Refusal as refusal:
        raise ConfigError(refusal.reason) from refusal
    if part is None:
        return local, None
    return local, part.boxes[0] if part.boxes else Box((0,) * len(part.shape), (0,) * len(part.shape))


def _target_maker(target: object) -> Callable[[int, Any], tuple[Target, Any]]:
    if is_tensorflow(target):
        return variable_target
    return tensor_target if is_tensor(target) else array_target


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__qualname__}"
