"""The cluster simulator: the engine's own scheduler on a simulated clock."""
