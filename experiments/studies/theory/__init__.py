"""Parts of ``python -m experiments.theory``."""
