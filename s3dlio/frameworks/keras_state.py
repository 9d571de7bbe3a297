"""A Keras model as a state, and a state back into a model: its variables and its optimizer's, by path.

Owns the names and the comparison; knows nothing of storage or training loops. Called through ``keras`` (its public
face) and by ``tensorflow`` for Keras objects in a graph of trackables. Arrays are NumPy's for every backend, so a model
trained on one backend goes on with another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..engine.errors import ConfigError, DependencyError
from ..tensors.dtypes import numpy_dtype, numpy_name
from .keras_names import align, made_up
from .matching import Kind, check_match

try:
    import keras
except ImportError as error:
    raise DependencyError("s3dlio.frameworks.keras needs keras: pip install 's3dlio[keras]'") from error

__all__ = ["by_path", "keras", "kind_of", "restore", "state_of", "value_of"]

_CARRIERS = {1: "uint8", 2: "int16"}
_HINT = "Paths are made of layer names: where code changed, name the layers as they were."


def state_of(model: keras.Model) -> dict[str, Any]:
    """``{"model": {path: array}, "optimizer": {path: array}}``; a model that is not compiled has no optimizer.

    All variables of the layers are in it, those of random seeds too, and none of metrics. Arrays are the variables' own
    memory where that is host memory: save or copy them before training goes on (``save_async`` has, when it returns).
    Where several variables have one path, the later ones end in ``~1``, ``~2`` ... in Keras' order.
    """
    return {part: {path: value_of(each) for path, each in found.items()} for part, found in _parts(model).items()}


def restore(model: keras.Model, state: Mapping[str, Any], *, optimizer: bool = True) -> None:
    """Assign what ``state_of`` gave, as loaded, to a built model; a compiled one's optimizer is built here.

    ``optimizer=False`` takes the model's variables only. Names that Keras made up may have other numbers than they had
    (it counts over the process): they correspond in their order. Integers may have another width if their values fit
    it, since backends differ there. Raises ``ConfigError`` with every variable that is
    missing, left over, or of another shape or dtype; then nothing is assigned.
    """
    if not model.built:
        raise ConfigError(
            f"model {model.name} has no variables yet: build it, or call it on a batch, before the restore"
        )
    owner = _optimizer(model)
    if optimizer and owner is not None and not owner.built:
        owner.build(model.trainable_variables)
    present = _parts(model)
    wanted = ("model", "optimizer") if optimizer else ("model",)
    stored = {f"{part}/{path}": array for part in wanted for path, array in state.get(part, {}).items()}
    variables = {f"{part}/{path}": each for part in wanted for path, each in present.get(part, {}).items()}
    names = align(stored, variables, made_up(_named(model)))
    if names is not None:
        stored = {name: stored[before] for name, before in names.items()}
    kinds = {name: kind_of(each) for name, each in variables.items()}
    stored = {name: _as_counter(array, kinds[name]) if name in kinds else array for name, array in stored.items()}
    check_match(
        {name: Kind(numpy_name(array.dtype), tuple(array.shape)) for name, array in stored.items()},
        kinds,
        f"model {model.name}",
        _HINT,
    )
    for name, each in variables.items():
        each.assign(stored[name])


def by_path(owner: Any) -> dict[str, Any]:
    """The variables of a layer, model or optimizer by their paths, each made unique; what occurs twice is taken once.

    Of an optimizer's paths it takes the last two names: what stands before them tells only from where it was built.
    """
    depth = 2 if isinstance(owner, keras.optimizers.Optimizer) else 0
    found: dict[str, Any] = {}
    seen = set()
    for each in owner.variables:
        if id(each) in seen:
            continue
        seen.add(id(each))
        name = path = "/".join(each.path.split("/")[-depth:])
        count = 0
        while name in found:
            count += 1
            name = f"{path}~{count}"
        found[name] = each
    return found


def value_of(variable: keras.Variable) -> Any:
    """The value as something that a save takes and a load gives back as a NumPy array."""
    value = variable.value
    if keras.backend.backend() != "torch":
        return value
    tensor = value.detach().cpu()
    dtype = numpy_dtype(variable.dtype)
    if dtype.isbuiltin == 1:
        return tensor.numpy()
    import torch

    return tensor.view(getattr(torch, _CARRIERS[dtype.itemsize])).numpy().view(dtype)


def kind_of(variable: keras.Variable) -> Kind:
    """Dtype and shape of a variable."""
    return Kind(numpy_name(np.dtype(numpy_dtype(variable.dtype))), tuple(variable.shape))


def _as_counter(array: Any, kind: Kind) -> Any:
    """``array`` in another integer dtype where every value fits: backends count in 32 or in 64 bits."""
    dtype = numpy_dtype(kind.dtype)
    if array.dtype == dtype or array.dtype.kind not in "iu" or dtype.kind not in "iu" or not array.size:
        return array
    bounds = np.iinfo(dtype)
    return array.astype(dtype) if bounds.min <= int(array.min()) and int(array.max()) <= bounds.max else array


def _named(model: keras.Model) -> Iterator[tuple[str, str]]:
    """Name and class name of everything in a model whose name is in paths."""
    for layer in model._flatten_layers():
        yield layer.name, type(layer).__name__
    yield "seed_generator", "SeedGenerator"
    optimizer = _optimizer(model)
    while optimizer is not None:
        yield optimizer.name, type(optimizer).__name__
        optimizer = getattr(optimizer, "inner_optimizer", None)


def _parts(model: keras.Model) -> dict[str, dict[str, Any]]:
    parts = {"model": by_path(model)}
    owner = _optimizer(model)
    if owner is not None:
        parts["optimizer"] = by_path(owner)
    return parts


def _optimizer(model: keras.Model) -> Any:
    """The optimizer of a compiled model, else None."""
    return getattr(model, "optimizer", None)
