"""TensorFlow's variables as a state, and a state back into them, by name.

Owns the walk over what ``tf.train.Checkpoint`` tracks, and its names. A state is a dict of variables:
``CheckpointStore.save`` takes it as it is, ``load(into=state_of(obj))`` fills it in place, and ``restore`` takes one
that was loaded before. Knows nothing of storage. Called by users.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

from ..engine.errors import ConfigError, DependencyError, UnsupportedError
from ..tensors.dtypes import numpy_name
from ..tensors.tf_leaf import describe
from .matching import Kind, check_match

try:
    import tensorflow as tf
except ImportError as error:
    raise DependencyError("s3dlio.frameworks.tensorflow needs tensorflow: pip install 's3dlio[tensorflow]'") from error

_HINT = "Variables that a model makes at its first call must be there before the restore: build it first."


def state_of(obj: Any) -> dict[str, Any]:
    """The variables of ``obj`` by name: of a ``tf.train.Checkpoint``, ``tf.Module`` or any other trackable object.

    Names are the paths of attributes, as TensorFlow's own checkpoints have them (``model/layers/0/w``; ``tf.train
    .list_variables`` adds a suffix). Of a Keras object in the graph all variables are taken, by their Keras paths; a
    Keras model alone gives ``s3dlio.frameworks.keras.state_of``. A variable reached on several ways has the shortest
    name. The counter of ``tf.train.Checkpoint.save`` is left out: it numbers TensorFlow's own files.

    Raises ``UnsupportedError`` with every object whose state is not in variables (lookup tables, dataset iterators,
    slots of TensorFlow 1 optimizers), ``ConfigError`` for what is not trackable.
    """
    if _is_keras(obj, "Model"):
        from . import keras_state

        return keras_state.state_of(obj)
    return {name: _value(each) for name, each in _variables(obj).items()}


def restore(obj: Any, state: Mapping[str, Any]) -> None:
    """Assign what ``state_of`` gave, as loaded, to the variables of ``obj``.

    Raises ``ConfigError`` with every variable that is missing, left over, or of another shape or dtype; then nothing is
    assigned. Other errors as in ``state_of``.
    """
    if _is_keras(obj, "Model"):
        from . import keras_state

        keras_state.restore(obj, state)
        return
    variables = _variables(obj)
    stored = {name: _array(value) for name, value in state.items()}
    check_match(
        {name: Kind(numpy_name(array.dtype), tuple(array.shape)) for name, array in stored.items()},
        {name: Kind(*describe(_value(each))) for name, each in variables.items()},
        f"this {type(obj).__qualname__}",
        _HINT,
    )
    for name, each in variables.items():
        each.assign(stored[name])


def _variables(root: Any) -> dict[str, Any]:
    """tf.Variables and Keras variables by name, breadth first."""
    if not isinstance(root, tf.__internal__.tracking.Trackable):
        raise ConfigError(
            f"{type(root).__qualname__} is not tracked by TensorFlow: pass tf.train.Checkpoint(name=...) of it"
        )
    found: dict[str, Any] = {}
    refused: list[str] = []
    seen: dict[int, Any] = {}
    waiting = deque([("", root)])
    while waiting:
        path, node = waiting.popleft()
        if id(node) in seen:
            continue
        seen[id(node)] = node
        prefix = f"{path}/" if path else ""
        if isinstance(node, tf.Variable) or _is_keras(node, "Variable"):
            found[path or "variable"] = node
        elif _is_keras(node, "Layer", "Optimizer"):
            from .keras_state import by_path

            fresh = {name: each for name, each in by_path(node).items() if id(each) not in seen}
            seen.update((id(each), each) for each in fresh.values())
            found.update((prefix + name, each) for name, each in fresh.items())
            optimizer = getattr(node, "optimizer", None) if _is_keras(node, "Model") else None
            if optimizer is not None:
                waiting.append((f"{prefix}optimizer", optimizer))
        else:
            reason = _why_not(node)
            if reason:
                refused.append(f"{path or 'the object itself'}: {reason}")
            waiting.extend(_children(node, path, prefix))
    if refused:
        raise UnsupportedError("not all state is in variables; keep these apart:\n  " + "\n  ".join(refused))
    return found


def _children(node: Any, path: str, prefix: str) -> list[tuple[str, Any]]:
    children = tf.train.TrackableView.children(node)
    if isinstance(node, tf.train.Checkpoint):
        children.pop("save_counter", None)
        root = getattr(node, "root", None)
        own = [(path, root)] if root is not None else []  # its children stand where the checkpoint does
        return own + [(prefix + _escape(name), child) for name, child in children.items() if child is not root]
    return [(prefix + _escape(name), child) for name, child in children.items()]


def _escape(name: str) -> str:
    """A child's name without slashes, written as TensorFlow does."""
    return name.replace(".", "..").replace("/", ".S")


def _why_not(node: Any) -> str | None:
    base = tf.__internal__.tracking.Trackable
    kind = type(node)
    if any(
        getattr(kind, hook) is not getattr(base, hook)
        for hook in ("_serialize_to_tensors", "_gather_saveables_for_checkpoint")
    ):
        return f"a {kind.__qualname__} keeps its state elsewhere"
    if hasattr(node, "get_slot_names") and node.get_slot_names():
        return f"a {kind.__qualname__} keeps slots; use an optimizer of Keras"
    return None


def _is_keras(value: object, *names: str) -> bool:
    keras = sys.modules.get("keras")
    kinds = {"Layer": "layers", "Optimizer": "optimizers"}
    if keras is None:
        return False
    return any(isinstance(value, getattr(getattr(keras, kinds[n]) if n in kinds else keras, n)) for n in names)


def _value(variable: Any) -> Any:
    return variable if isinstance(variable, tf.Variable) else variable.value


def _array(value: Any) -> Any:
    return value if hasattr(value, "dtype") and not isinstance(value, (tf.Tensor, tf.Variable)) else value.numpy()
