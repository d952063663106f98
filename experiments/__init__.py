"""The programs of this repository: ``python -m experiments.<name>``."""
