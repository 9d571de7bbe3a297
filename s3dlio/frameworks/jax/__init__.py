"""JAX: any pytree saved, and restored onto any devices.

``Checkpointer`` has the verbs that users of Orbax know; ``restore`` brings a checkpoint of any ``CheckpointStore`` onto
the devices of a target; ``addressable_pieces`` tells what of an array a process would store. States of dicts, lists,
tuples and arrays need none of it: ``CheckpointStore.save`` takes arrays of JAX as they are, and ``load`` gives NumPy's.
"""

from ...engine.errors import DependencyError

try:
    import jax as _jax  # noqa: F401
except ImportError as error:
    raise DependencyError("s3dlio.frameworks.jax needs jax: pip install 's3dlio[jax]'") from error

from ...tensors.jax_leaf import ArrayPiece, addressable_pieces
from .checkpointer import Checkpointer
from .restoring import restore
from .trees import plain

__all__ = ["ArrayPiece", "Checkpointer", "addressable_pieces", "plain", "restore"]
