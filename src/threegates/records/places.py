"""Where one study, or one build of the book, finds checkpoints and lays down what it makes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from threegates.environment import variable
from threegates.records.provenance import build_folder, project_root

#: Folders of this machine by the labels that notebooks use for them, as JSON: no page shows a path.
SOURCES = "THREEGATES_SOURCES"
#: The manifest that chapters take their pairs from, where it is not the lab's.
MANIFEST = "THREEGATES_MANIFEST"


@dataclass(frozen=True)
class Places:
    """Folders that go together; several builds of one process have each its own.

    build : folder of everything that is built.
    manifest : the one that chapters take their pairs from; that of the build's lab if None.
    sources : folders of this machine by the labels that notebooks use for them.
    """

    build: Path
    manifest: Path | None = None
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def here(cls) -> Places:
        """Those that the environment names, which are the project's own where it names none."""
        named = variable(MANIFEST)
        manifest = Path(named).absolute() if named else None
        return cls(build_folder(), manifest, labelled_folders())

    @property
    def lab(self) -> Path:
        """Manifest of what the lab has trained."""
        return self.build / "lab" / "manifest.yaml"

    @property
    def records(self) -> Path:
        """Folder of the records."""
        return self.build / "records"

    @property
    def notebooks(self) -> Path:
        """Folder of the executed notebooks that the book is made of."""
        return self.build / "notebooks"

    def variables(self) -> dict[str, str]:
        """What `here` finds these places by, in a process of the same project."""
        return {
            "THREEGATES_ROOT": str(project_root()),
            "THREEGATES_BUILD": str(self.build),
            MANIFEST: str(self.manifest or ""),
            SOURCES: json.dumps(dict(self.sources)),
        }


def labelled_folders() -> dict[str, str]:
    """Folders by label as the environment names them; known outside the project too."""
    return json.loads(variable(SOURCES) or "{}")
