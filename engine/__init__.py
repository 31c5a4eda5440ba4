"""The serving engine: scheduler, block manager and policies. Torch lives in engine.execution only."""
