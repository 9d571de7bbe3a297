"""torch_checkpointing on s3dlio: ``S3dlioStorageConfig``, so that its checkpoints go to s3, az, file and direct.

Owns the public names. What is stored is torch_checkpointing's own: its files, as it lays them out, in its folders; this
package stores and reads files and decides, on object stores, when a folder is one. FORMAT.md describes the marks.
"""

from ...engine.errors import DependencyError

try:
    import torch_checkpointing as _needed
except ImportError as error:
    raise DependencyError(
        "S3dlioStorage needs torch_checkpointing: pip install 's3dlio[torch_checkpointing]'"
    ) from error
from .storage import S3dlioStorage, S3dlioStorageConfig, shutdown

del _needed

__all__ = ["S3dlioStorage", "S3dlioStorageConfig", "shutdown"]
