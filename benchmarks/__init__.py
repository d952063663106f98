"""Programs that measure milliseconds and bytes: ``python -m benchmarks.<name>``."""
