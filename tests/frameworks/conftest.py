"""What the tests of the frameworks need: settings that must stand before an import, and their place in a whole run.

They run last. Once a backend of TensorFlow or JAX has run, the process has threads that a forked child lacks (JAX warns
of every fork, and a warning is an error here), and a garbage collection takes half a second.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SETTINGS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",  # nothing is downloaded: models are made from a config
    "JAX_PLATFORMS": "cpu",
    "KERAS_BACKEND": "tensorflow",  # the others run in processes of their own: it is chosen at the import
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_ENABLE_ONEDNN_OPTS": "0",  # it tells of itself at every import
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
}
os.environ.update(SETTINGS)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: HERE in item.path.parents)
