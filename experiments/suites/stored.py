"""Reads runs whose metrics.csv are stored as <variant>_<task>_seed<seed>.csv, as in ``docs/results``."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence

import numpy as np

from experiments.suites.report import Cell
from preqn_jax.envs import DISCRETE_ENVS, ENVS
from preqn_jax.settings import SettingError
from preqn_jax.training import plots

TASKS = {**ENVS, **DISCRETE_ENVS}


def read(folder: pathlib.Path, variants: Sequence[str], column: str = "return_mean") -> list[Cell]:
    """The cells of all stored runs, sorted by task, then in the order of ``variants``, then by name.

    Args:
      folder: directory of the files.
      variants: names of known variants; a stored run may be of another one.
      column: a metric that every run must have.

    Raises:
      SettingError: if there are no files, a file is damaged, empty, without the column or of an unknown task, or the
        evaluations of different seeds have different steps.
    """
    groups: dict[tuple[str, str], list[tuple[int, pathlib.Path]]] = {}
    for path in folder.glob("*.csv"):
        match = re.fullmatch(r"(.+)_([a-z0-9]+)_seed(\d+)", path.stem)
        if match is None or match[2] not in TASKS:
            raise SettingError(f"{path} is not <variant>_<task>_seed<seed>.csv; allowed tasks: {', '.join(TASKS)}")
        groups.setdefault((match[2], match[1]), []).append((int(match[3]), path))
    if not groups:
        raise SettingError(f"--stored={folder} holds no <variant>_<task>_seed<seed>.csv")
    order = {name: i for i, name in enumerate(variants)}
    keys = sorted(groups, key=lambda key: (key[0], order.get(key[1], len(order)), key[1]))
    return [_read_cell(variant, task, sorted(groups[task, variant]), column) for task, variant in keys]


def _read_cell(variant: str, task: str, runs: Sequence[tuple[int, pathlib.Path]], column: str) -> Cell:
    seeds, paths = zip(*runs, strict=True)
    tables = tuple(plots.read_metrics(path) for path in paths)
    for path, table in zip(paths, tables, strict=True):
        if column not in (table.dtype.names or ()):
            raise SettingError(f"{path} has no column {column}: the run did not measure it")
        if not len(table):
            raise SettingError(f"{path} has no evaluation yet; remove it")
        if not np.array_equal(table["step"], tables[0]["step"]):
            raise SettingError(f"{path} and {paths[0]} must have evaluations at the same steps to be pooled")
    return Cell(variant, task, TASKS[task], seeds, tables)
