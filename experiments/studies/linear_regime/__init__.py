"""Parts of ``python -m experiments.linear_regime``."""
