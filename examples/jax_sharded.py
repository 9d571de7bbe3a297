"""A sharded model trained by JAX: saved in the background while donated steps go on, restored onto another mesh.

python examples/jax_sharded.py [URI]        (without a URI: in a temporary folder)
It takes eight devices: here of the CPU, so that it runs anywhere.
"""

from __future__ import annotations

import os
import sys
import tempfile
from functools import partial
from typing import Any, NamedTuple

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from s3dlio.frameworks.jax import Checkpointer


class State(NamedTuple):
    """What training continues from; any pytree will do (flax, optax, equinox ...)."""

    step: Any
    weights: dict[str, Any]
    moments: dict[str, Any]
    key: Any


def create() -> State:
    """A network of two layers in two precisions, before the first step."""
    key = jax.random.key(0)
    weights = {
        "in": jax.random.normal(key, (64, 512)) / 8,
        "out": jax.random.normal(key, (512, 1), jnp.bfloat16) / 16,
    }
    return State(jnp.zeros((), jnp.int32), weights, jax.tree.map(jnp.zeros_like, weights), key)


@partial(jax.jit, donate_argnums=0)
def train(state: State) -> tuple[State, Any]:
    """One step, which takes the memory of the state it is given."""
    key, now = jax.random.split(state.key)
    batch = jax.random.normal(now, (128, 64))

    def loss(weights: dict[str, Any]) -> Any:
        out = jnp.tanh(batch @ weights["in"]) @ weights["out"]
        return jnp.mean((out[:, 0] - jnp.sin(batch[:, 0])) ** 2)

    value, gradients = jax.value_and_grad(loss)(state.weights)
    moments = jax.tree.map(lambda m, g: (0.9 * m + g).astype(m.dtype), state.moments, gradients)
    weights = jax.tree.map(lambda w, m: (w - 0.05 * m).astype(w.dtype), state.weights, moments)
    return State(state.step + 1, weights, moments, key), value


def placed(mesh: Any, state: State) -> State:
    """The form of a state with the sharding of each leaf: the wide layer is cut along its 512 units."""
    spec = {"in": PartitionSpec(None, "model"), "out": PartitionSpec("model", None)}
    whole = PartitionSpec()
    specs = State(whole, spec, spec, whole)
    form: State = jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec)),
        jax.eval_shape(lambda: state),
        specs,
    )
    return form


def main(uri: str) -> None:
    """Train on eight devices, go on with two."""
    eight = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    state = create()
    state = jax.tree.map(lambda leaf, form: jax.device_put(leaf, form.sharding), state, placed(eight, state))
    with Checkpointer(uri, keep_last=2) as checkpointer:
        for _ in range(30):
            state, loss = train(state)
            if int(state.step) % 10 == 0:  # the state is copied when this returns, and may be donated by the next step
                checkpointer.save_async(int(state.step), state, user_meta={"loss": float(loss)})
        checkpointer.wait_until_finished()
        print(f"steps {checkpointer.all_steps()} are committed at {uri}")

        two = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
        resumed = checkpointer.restore(target=placed(two, create()))
        same = all(
            bool((jax.device_get(one) == jax.device_get(other)).all())
            for one, other in zip(jax.tree.leaves(resumed.weights), jax.tree.leaves(state.weights), strict=True)
        )
        print(f"step {int(resumed.step)} restored from 8 devices onto 2: {'bit for bit' if same else 'it differs'}")
        assert same
        resumed, loss = train(resumed)
        print(f"and trained on to step {int(resumed.step)}, loss {float(loss):.4f}")

        host = checkpointer.store.load()  # NumPy arrays, without devices
        print("as NumPy:", {name: (array.shape, str(array.dtype)) for name, array in host["weights"].items()})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(f"file://{folder}/run")
