"""Parts of ``python -m experiments.ntk_analysis``."""
