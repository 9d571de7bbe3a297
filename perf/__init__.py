"""Benchmarks: ``python -m perf NAME`` measures this package beside the machine's own limits and beside its peers.

``harness`` runs cases in turn and reports medians and ratios; ``meter`` counts CPU seconds and memory over all
processes; ``state`` makes the states; ``limits`` knows how fast the machine is without us; ``savers`` drives other
savers. Every other module is one benchmark with ``run(options) -> Report``. Nothing here is installed, and the package
imports none of it.
"""
