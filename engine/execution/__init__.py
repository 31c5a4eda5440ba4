"""Runs the scheduler's batches on a device. The only package that imports torch."""
