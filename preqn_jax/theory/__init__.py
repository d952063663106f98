"""Tabular operators and finite MDPs of the theory of Achiam et al. (2019), with the paper's numbering."""
