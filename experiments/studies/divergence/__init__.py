"""Parts of ``python -m experiments.divergence``."""
