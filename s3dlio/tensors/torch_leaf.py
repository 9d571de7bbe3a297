"""torch tensors as leaves and targets.

Owns what torch needs: which tensors cannot be stored, ties, who copies which tensor, sparse components, tensors over
loaded memory. Imports torch only when a stored leaf asks for it. Called by ``tree``, ``restore`` and ``into``.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable
from typing import Any

import numpy as np

from ..engine.errors import ConfigError, ManifestError, UnsupportedError
from ..engine.source import move
from .box import Part
from .copying import gather, scatter
from .cuda_copies import DeviceTensor, Mark, copy_to_device, wait_for_caller
from .dtensor import dtensor_type, local_part
from .dtypes import NATIVE, PLAIN, TORCH
from .leaf import MAX_DIMS, Collector, Handler, Leaf, Node, Refusal, Spec, Target, Ties, make_spec
from .numpy_leaf import Array
from .scalars import import_torch
from .torch_boxes import CARRIERS, TensorBoxes

Tensor = Any

# layout: the constructor's compressed and plain indices, by the names of their accessors.
_COMPRESSED = {
    "sparse_csr": ("crow_indices", "col_indices"),
    "sparse_csc": ("ccol_indices", "row_indices"),
    "sparse_bsr": ("crow_indices", "col_indices"),
    "sparse_bsc": ("ccol_indices", "row_indices"),
}


class TorchLeaf(Leaf):
    """A dense tensor."""

    __slots__ = ()

    def copy_to(self, address: int, start: int, stop: int) -> None:
        self.check_range(start, stop)
        source = self.source
        tensor = source.tensor if isinstance(source, DeviceTensor) else source
        if tensor.data_ptr() != self.pointer:  # 60 ns against reading memory that was freed
            raise UnsupportedError(f"{self.name}: its memory was moved or freed before it was staged")
        if self.direct:
            move(address, self.pointer + start, stop - start)
        elif tensor is not source:
            source.copy_to(self.name, address, start, stop)
        else:
            gather(TensorBoxes(tensor), address, start, stop)


class TorchHandlers:
    """Turns tensors into leaves of ``collector``."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._specs: dict[tuple[Any, ...], tuple[Spec, Ties]] = {}
        self._mark = Mark()

    def end(self) -> None:
        """The state was read, in the thread whose work on devices comes before its copy."""
        self._mark.set()

    def table(self) -> dict[type, Handler]:
        """Handlers by exact type; empty where torch is not imported, since no value can be a tensor then."""
        torch = sys.modules.get("torch")
        if torch is None:
            return {}
        self._torch = torch
        self._strided = torch.strided
        self._parameter = torch.nn.Parameter
        handlers: dict[type, Handler] = {torch.Tensor: self.tensor, torch.nn.Parameter: self.tensor}
        distributed = dtensor_type()
        if distributed is not None:
            handlers[distributed] = self._distributed
        return handlers

    def tensor(self, tensor: Tensor, name: str, depth: int) -> Node:
        if tensor.layout is not self._strided:
            return self._sparse(tensor, name, depth)
        return self._dense(tensor, _form(tensor, parameter=type(tensor) is self._parameter), name)

    def _distributed(self, tensor: Tensor, name: str, depth: int) -> Node:
        local, part = local_part(tensor)
        form = _form(tensor, parameter=isinstance(tensor, self._parameter))
        return self._dense(local.detach(), form, name, part)

    def _dense(self, tensor: Tensor, form: str, name: str, part: Part | None = None) -> Node:
        if tensor.is_meta:
            raise Refusal("a meta tensor has no bytes; materialise it first")
        if tensor.is_nested:
            raise Refusal("nested tensors cannot be stored; store the list of tensor.unbind()")
        key = (tensor.dtype, tensor.shape, form, part)
        known = self._specs.get(key)
        if known is None:
            known = self._specs[key] = self._spec(tensor, form, part), {}
        spec, ties = known
        try:
            pointer = tensor.data_ptr()
        except RuntimeError as error:
            raise Refusal(f"a tensor without memory of its own ({error})") from error
        direct = tensor.is_cpu and tensor.is_contiguous() and not (tensor.is_neg() or tensor.is_conj())
        tie: Hashable = pointer
        if pointer == 0 or spec.nbytes == 0:  # without memory: empty, or a symbolic zero, which a copy makes real
            tie = ("empty", id(tensor))
            direct = direct and spec.nbytes == 0
        elif not direct:
            tie = (pointer, tensor.stride(), tensor.device, tensor.is_neg(), tensor.is_conj())
        index = ties.get(tie)
        if index is not None:
            return self._collector.alias(index, name)
        source = DeviceTensor(tensor, self._mark) if tensor.is_cuda else tensor
        ties[tie] = index = self._collector.add(spec, source, pointer, direct, name, part)
        return index

    def _spec(self, tensor: Tensor, form: str, part: Part | None) -> Spec:
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tensor.is_quantized:
            raise Refusal(
                f"quantized tensors ({dtype}) cannot be stored; store int_repr() with its scale and zero point"
            )
        if dtype not in TORCH:
            raise Refusal(f"torch dtype {dtype} cannot be stored")
        if tensor.dim() > MAX_DIMS:
            raise Refusal(f"{tensor.dim()} dimensions; at most {MAX_DIMS} can be stored")
        return make_spec(form, dtype, part.stored_shape if part else tuple(tensor.shape))

    def _sparse(self, tensor: Tensor, name: str, depth: int) -> Node:
        layout = str(tensor.layout).removeprefix("torch.")
        if tensor.is_meta:
            raise Refusal("a meta tensor has no bytes; materialise it first")
        parts: tuple[str, ...]
        if layout == "sparse_coo":
            parts = ("_indices", "_values")
        elif layout in _COMPRESSED:
            parts = (*_COMPRESSED[layout], "values")
        else:
            raise Refusal(f"tensors of layout {layout} cannot be stored")
        form = "param" if type(tensor) is self._parameter else "torch"
        plain = tensor.detach()
        nodes = []
        for part in parts:
            try:
                nodes.append(self.tensor(getattr(plain, part)(), f"{name}.{part.lstrip('_')}", depth))
            except Refusal as refusal:
                refusal.steps.append(f".{part.lstrip('_')}()")
                raise
        return {
            "sparse": {
                "layout": layout,
                "shape": list(tensor.shape),
                "coalesced": layout == "sparse_coo" and tensor.is_coalesced(),
                "form": form,
                "grad": tensor.requires_grad,
                "parts": nodes,
            }
        }


def _form(tensor: Tensor, *, parameter: bool) -> str:
    grad = tensor.requires_grad
    if parameter:
        return "param" if grad else "param-frozen"
    return "torch-grad" if grad else "torch"


def tensor_over(whole: Array, spec: Spec, offset: int) -> Tensor:
    """A tensor over ``whole`` (bytes) from ``offset``, without a copy; it keeps ``whole`` alive.

    Made through a NumPy array each: ``torch.frombuffer`` keeps no mapping alive, and views of one storage would all be
    saved whole by ``torch.save`` and taken for tied weights by libraries that compare storages.
    """
    torch: Any = sys.modules.get("torch") or import_torch("a stored tensor")
    dtype = getattr(torch, spec.dtype, None)
    if dtype is None:
        raise ConfigError(f"this torch has no dtype {spec.dtype}")
    native = spec.dtype in NATIVE
    carrier = spec.dtype if native else CARRIERS[PLAIN[spec.dtype].size]
    tensor = torch.from_numpy(np.ndarray(spec.shape, carrier, whole, offset if spec.nbytes else 0))
    if not native:
        tensor = tensor.view(dtype)
    return _as_form(torch, tensor, spec.form)


def _as_form(torch: Any, tensor: Tensor, form: str) -> Tensor:
    if form == "torch":
        return tensor
    if form == "torch-grad":
        return tensor.requires_grad_()
    return torch.nn.Parameter(tensor, requires_grad=form == "param")


def sparse_over(node: Node, parts: list[Tensor]) -> Tensor:
    """The sparse tensor of a ``sparse`` node and its components; ``ManifestError`` if they do not fit together."""
    torch = import_torch("a stored sparse tensor")
    layout, shape = node.get("layout"), node.get("shape")
    wanted = 2 if layout == "sparse_coo" else 3
    if (
        not all(isinstance(part, torch.Tensor) and part.layout is torch.strided for part in parts)
        or len(parts) != wanted
        or (layout != "sparse_coo" and layout not in _COMPRESSED)
        or type(shape) is not list
        or not all(type(side) is int for side in shape)
        or node.get("form") not in ("torch", "param")
    ):
        raise ManifestError("tree: a malformed sparse node")
    try:
        if layout == "sparse_coo":
            coalesced = node.get("coalesced") is True
            tensor = torch.sparse_coo_tensor(*parts, shape, check_invariants=True, is_coalesced=coalesced)
        else:
            kind = getattr(torch, layout)
            tensor = torch.sparse_compressed_tensor(*parts, shape, layout=kind, check_invariants=True)
        grad = node.get("grad") is True
        if node["form"] == "param":
            return torch.nn.Parameter(tensor, requires_grad=grad)
        return tensor.requires_grad_(grad)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise ManifestError(f"tree: a sparse node contradicts itself: {error}") from error


class TorchTarget(Target):
    """An existing tensor that takes a stored leaf."""

    __slots__ = ("tensor",)

    def __init__(self, index: int, tensor: Tensor) -> None:
        self.index = index
        self.tensor = tensor
        self.nbytes = tensor.numel() * tensor.element_size()

    def address(self) -> int | None:
        tensor = self.tensor
        if tensor.is_cpu and tensor.is_contiguous() and not (tensor.is_neg() or tensor.is_conj()):
            pointer: int = tensor.data_ptr()
            return pointer
        return None

    def copy_from(self, address: int, start: int, stop: int) -> None:
        self.check_range(start, stop)
        pointer = self.address()
        if pointer is not None:
            move(pointer + start, address, stop - start)
        elif self.tensor.is_cuda:
            copy_to_device(self.tensor, address, start, stop)
        else:
            scatter(TensorBoxes(self.tensor), address, start, stop)


def tensor_target(index: int, tensor: Tensor) -> tuple[TorchTarget, Any]:
    """A target and the identity of its memory; ``ConfigError`` if it cannot be written element by element."""
    if tensor.is_meta:
        raise ConfigError("it is a meta tensor, without memory")
    if tensor.numel() and any(
        stride == 0 and side > 1 for stride, side in zip(tensor.stride(), tensor.shape, strict=True)
    ):
        raise ConfigError("it is expanded: several of its elements share memory")
    if tensor.is_cuda:
        wait_for_caller(tensor.device)
    identity = (tensor.data_ptr(), tensor.stride(), str(tensor.device)) if tensor.numel() else id(tensor)
    return TorchTarget(index, tensor), identity


def is_tensor(value: object) -> bool:
    """Whether ``value`` is a torch tensor; never imports torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
