"""Bytes, slots, workers and storage: what moves a checkpoint off the training process.

Imported as ``s3dlio.engine`` only. Knows nothing of tensors or manifests and imports nothing of ``s3dlio`` outside this
package. Importing it loads nothing: a worker process pays for what it uses.
"""

from __future__ import annotations

# A bare `engine` would take the place of the `engine.py` that many training repositories keep beside their script.
if __name__ != "s3dlio.engine":
    raise ImportError(f"this folder is not the package {__name__!r}: import it as 's3dlio.engine'", name=__name__)
