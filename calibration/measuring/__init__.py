"""Designed steps run on the engine, within a budget."""
