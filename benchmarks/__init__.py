"""Measurements of kvcast itself; dated results lie in benchmarks/results."""
