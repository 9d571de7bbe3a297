"""How the ranks of one job agree on a checkpoint: words on a board, passed by what the job already runs on.

``board``: the narrow interface, and words of any size on it. ``boards``: finding the board of this job, of which there
are four kinds, in ``torch_board``, ``jax_board``, ``mpi_board`` and ``store_board``. ``council``: gathering and
announcing with deadlines that name who is missing. ``verdict``: what the ranks decide of a save, a pure function.

Knows no tensors and stores nothing. ``group_saver`` and ``open_store`` use it.
"""
