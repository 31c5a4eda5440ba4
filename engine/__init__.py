"""The serving engine: scheduler, block manager, policies. Only engine.execution imports torch."""
