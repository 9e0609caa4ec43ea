"""Faults on purpose, on real processes, judged by what clients saw."""
