"""What a leaf of a state is: one array (or long text) with a name, a form and a byte image.

Owns the records shared by both directions: ``Spec`` (what the bytes mean), ``Leaf`` (bytes to be saved), ``Target``
(memory to be filled), ``Refusal`` (a value that cannot be stored, on its way to an error with its path), ``Collector``
(leaves found so far). Imports no framework. Leaves are made by ``numpy_leaf``, ``torch_leaf`` and ``jax_leaf``
during ``flatten``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from ..engine.errors import UnsupportedError
from .dtypes import element

if TYPE_CHECKING:
    from .box import Part

MAX_DEPTH = 64
"""Containers within containers; a walk takes three frames per level, well below Python's limit of 1000."""
MAX_DIMS = 64

FORMS = ("numpy", "torch", "torch-grad", "param", "param-frozen", "jax", "jax-weak", "bytes", "bytearray", "str")
"""How a leaf is restored: NumPy array; torch tensor (``-grad``: requires_grad); nn.Parameter (``-frozen``: it does not
require grad); JAX array (``-weak``: weakly typed), which is NumPy's until ``s3dlio.frameworks.jax`` gives it a device;
long bytes, bytearray and text (UTF-8, surrogates passed)."""
_FRAMEWORKS = dict.fromkeys(("torch", "torch-grad", "param", "param-frozen"), "torch") | dict.fromkeys(
    ("jax", "jax-weak"), "jax"
)

Node = Any
"""A JSON-able node of a tree (``s3dlio/FORMAT.md``, Tree)."""
Ties = dict[Hashable, int]
"""Leaves of one spec by their memory: its address, or a tuple where an address does not tell."""
Handler = Callable[[Any, str, int], Node]
"""Stores a value under a name at a depth; returns its node."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What the bytes of a leaf mean; shared by all leaves that agree.

    ``width`` is the component's width in bytes (1, 2, 4, 8 or 16), ``code`` safetensors' dtype or None.
    """

    form: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    width: int
    code: str | None

    @property
    def framework(self) -> str:
        """``torch``, ``jax`` or ``numpy``."""
        return _FRAMEWORKS.get(self.form, "numpy")


def make_spec(form: str, dtype: str, shape: tuple[int, ...]) -> Spec:
    """The spec of C-order elements named ``dtype``; raises as ``dtypes.element`` does."""
    one = element(dtype)
    return Spec(form, dtype, shape, math.prod(shape) * one.size, one.width, one.code)


class Leaf(ABC):
    """One array of a state, kept alive; its image is its elements in C order, little-endian (``>`` dtypes: as is).

    ``source`` is the array or tensor, its memory begins at ``pointer``; ``direct`` if the image is that memory.
    """

    __slots__ = ("direct", "name", "pointer", "source", "spec")

    def __init__(self, name: str, spec: Spec, source: Any, pointer: int, direct: bool) -> None:
        self.name = name
        self.spec = spec
        self.source = source
        self.pointer = pointer
        self.direct = direct

    @property
    def dtype(self) -> str:
        return self.spec.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    @property
    def nbytes(self) -> int:
        return self.spec.nbytes

    @property
    def framework(self) -> str:
        return self.spec.framework

    def address(self) -> int | None:
        """Where the image lies in host memory; None if it must be gathered (strided, conjugated, on a device)."""
        return self.pointer if self.direct else None

    @abstractmethod
    def copy_to(self, address: int, start: int, stop: int) -> None:
        """Write bytes [start, stop) of the image to memory at ``address``.

        The interpreter is released for all but small copies; a strided array is gathered in boxes of at most 4 MiB.
        Raises ``UnsupportedError`` if the tensor's memory was moved or freed since ``flatten``.
        """

    def check_range(self, start: int, stop: int) -> None:
        """``ValueError`` unless [start, stop) lies in the image."""
        if not 0 <= start <= stop <= self.spec.nbytes:
            raise ValueError(f"bytes [{start}, {stop}) of {self.name}, which has {self.spec.nbytes}")


class Leaves(Sequence[Leaf]):
    """The leaves of a state in the order of its walk, as columns; ``leaves[i]`` makes the ``Leaf`` anew.

    A million leaf objects would have the garbage collector look through the whole process several times while they are
    made (it held the interpreter for up to 3 s); columns of strings, numbers and the caller's own arrays do not.
    ``kinds``: the class of a leaf by framework. ``parts``: which leaves are a rank's part of an array, by index.
    """

    __slots__ = ("_direct", "_kinds", "_pointers", "_sources", "names", "parts", "specs")

    def __init__(self, kinds: dict[str, type[Leaf]]) -> None:
        self.names: list[str] = []
        self.specs: list[Spec] = []
        self.parts: dict[int, Part] = {}
        self._kinds = kinds
        self._sources: list[Any] = []
        self._pointers: list[int] = []
        self._direct: list[bool] = []

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Leaf: ...
    @overload
    def __getitem__(self, index: slice) -> list[Leaf]: ...
    def __getitem__(self, index: int | slice) -> Leaf | list[Leaf]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        spec = self.specs[index]
        kind = self._kinds[spec.framework]
        return kind(self.names[index], spec, self._sources[index], self._pointers[index], self._direct[index])

    def append(self, name: str, spec: Spec, source: Any, pointer: int, direct: bool) -> int:
        """Take a leaf; returns its index."""
        self.names.append(name)
        self.specs.append(spec)
        self._sources.append(source)
        self._pointers.append(pointer)
        self._direct.append(direct)
        return len(self.names) - 1

    def bare(self, order: Iterable[int]) -> Leaves:
        """These leaves, with what they mean and without what they are: nobody's array is kept alive by them."""
        made = Leaves({})
        for index in order:
            number = made.append(self.names[index], self.specs[index], None, 0, True)
            if index in self.parts:
                made.parts[number] = self.parts[index]
        return made


class Target(ABC):
    """Existing memory that takes one stored leaf (``index``); bytes [0, nbytes) may be written in any pieces."""

    __slots__ = ("index", "nbytes")
    index: int
    nbytes: int

    @abstractmethod
    def address(self) -> int | None:
        """Where the image goes in host memory; None if it must be scattered."""

    @abstractmethod
    def copy_from(self, address: int, start: int, stop: int) -> None:
        """Read bytes [start, stop) of the image from memory at ``address``; the interpreter is released."""

    def check_range(self, start: int, stop: int) -> None:
        """``ValueError`` unless [start, stop) lies in the image."""
        if not 0 <= start <= stop <= self.nbytes:
            raise ValueError(f"bytes [{start}, {stop}) of a target of {self.nbytes}")


class Refusal(Exception):
    """A value cannot be stored; containers add their step while it passes, and ``flatten`` makes it an error."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.steps: list[str] = []

    def error(self) -> UnsupportedError:
        """The error for the caller, with the path from the root."""
        return UnsupportedError(f"state{''.join(reversed(self.steps))}: {self.reason}")


class Collector:
    """The leaves found so far, their unique names, and their further ones."""

    __slots__ = ("_names", "aliases", "leaves")

    def __init__(self, kinds: dict[str, type[Leaf]]) -> None:
        self.leaves = Leaves(kinds)
        self.aliases: dict[str, int] = {}
        self._names: set[str] = {"__metadata__"}  # safetensors' own

    def alias(self, index: int, name: str) -> int:
        """Let a leaf, which occurs again, be known by ``name`` too; returns its index."""
        self.aliases[self._unique(name)] = index
        return index

    def add(self, spec: Spec, source: Any, pointer: int, direct: bool, name: str, part: Part | None = None) -> int:
        """Take a leaf under ``name``, or a name like it where that is taken; returns its index.

        ``part``: of which array on several ranks it is what this one has.
        """
        if not name or name in self._names:
            name = self._unique(name)
        else:
            self._names.add(name)
        index = self.leaves.append(name, spec, source, pointer, direct)
        if part is not None:
            self.leaves.parts[index] = part
        return index

    def _unique(self, name: str) -> str:
        name = base = name or "tensor"
        count = 0
        while name in self._names:
            count += 1
            name = f"{base}~{count}"
        self._names.add(name)
        return name
