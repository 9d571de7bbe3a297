"""Checkpoints inside the frameworks' own training loops: one module for each framework, imported by its user.

Owns nothing and imports nothing: a module of this package imports its framework, so ``import s3dlio`` never does, and a
framework that is not installed is a ``DependencyError`` that names the extra. ``s3dlio.tensors`` knows the arrays of
every framework without these modules: ``CheckpointStore.save`` takes them as they are.
"""
