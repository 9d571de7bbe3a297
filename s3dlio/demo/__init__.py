"""``s3dlio demo``: train, checkpoint in the background, die in the middle of a save, resume, compare bit for bit.

Owns the pieces of that story; the command line calls ``story.run``. The three trainers are processes of their own:

    story ── starts, reads events ──▶ trainer (torch) ── save_async / load ──▶ store
      └──▶ report (pure: numbers in, text or JSON out)

``text``, ``story``, ``report``, ``place`` and ``processes`` never import torch; ``model``, ``training`` and ``trainer``
do.
"""
