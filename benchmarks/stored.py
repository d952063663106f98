"""Results that are saved part by part, so that an interrupted program measures only the missing parts."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from benchmarks import machine
from benchmarks.timing import Section
from preqn_jax.settings import SettingError
from preqn_jax.training import provenance
from preqn_jax.training.files import replace_file


class Store:
    """The parts of a result, each a JSON file in one directory with versions, device and settings."""

    def __init__(self, flag: str, folder: str, settings: dict[str, Any]):
        """Creates the directory, or continues in it.

        Args:
          flag: the flag that names the directory, for error messages.
          folder: the directory.
          settings: all that parts of one result must have in common, as JSON takes it; the device is added.

        Raises:
          SettingError: if the directory cannot be written, or holds parts with other settings or of another device.
        """
        self.folder = pathlib.Path(folder)
        machine.output_file(flag, str(self.folder / "part.json"))
        self._settings = json.loads(json.dumps({**settings, "device": provenance.device()}))
        for path in sorted(self.folder.glob("*.json")):
            found = self._read(flag, path).get("settings", {})
            for name, value in self._settings.items():
                if found.get(name) != value:
                    raise SettingError(
                        f"{flag}={folder} holds {path.name}, which was measured with {name} {found.get(name)}, not "
                        f"{value}; choose another directory"
                    )

    def has(self, name: str) -> bool:
        """Whether a part is saved."""
        return self._path(name).exists()

    def save(self, name: str, section: Section) -> None:
        """Saves a part."""
        lines = [*section.lines, *map(str, section.targets)]
        machine.save(self._path(name), {"settings": self._settings, "lines": lines}, [section])

    def load(self, name: str) -> dict[str, Any]:
        """The title, the lines and the numbers of a part that is saved."""
        record = json.loads(self._path(name).read_text())
        return {**record["sections"][0], "lines": record["lines"], "commit": record["commit"]}

    def write_text(self, file: str, names: list[str], heading: str) -> pathlib.Path:
        """Writes all the parts that are saved into one text file, in the order of ``names``; returns its path."""
        parts = [self.load(name) for name in names if self.has(name)]
        texts = [str(Section(part["title"], [*part["lines"], f"commit {part['commit']}"], {})) for part in parts]
        replace_file(self.folder / file, "\n".join([heading, *texts]) + "\n")
        return self.folder / file

    def _path(self, name: str) -> pathlib.Path:
        return self.folder / f"{name.replace(' ', '_')}.json"

    def _read(self, flag: str, path: pathlib.Path) -> dict[str, Any]:
        try:
            return dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            raise SettingError(f"{flag}={self.folder} holds a damaged {path.name}; delete that file") from None
