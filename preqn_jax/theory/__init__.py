"""The tabular operators and MDPs of the theory, in the numbering of Achiam et al. (2019)."""
