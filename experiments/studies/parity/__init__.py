"""Parts of ``python -m experiments.parity``."""
