"""Parts of ``python -m experiments.kernel_picture``."""
