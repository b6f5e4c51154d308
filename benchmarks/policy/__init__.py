"""The routing policy against its baselines: ``python -m benchmarks.policy``."""
