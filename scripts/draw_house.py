"""Draw the house from its imports: python scripts/draw_house.py writes book/_static/house.svg.

Each wing is a box with its number of modules. It stands one storey above the highest wing that it imports.
An arrow leads from a wing to one that it imports; left out are arrows that a way over other wings already
tells, and the ground, on which everything may stand. The order of the wings is the project's rule, and
`tests/test_house.py` reads it here. Equal sources give equal bytes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "threegates"
PICTURE = ROOT / "book" / "_static" / "house.svg"

#: The wings, each with its words. A wing imports only wings that stand further down in this list.
WINGS = {
    "cli": "the command",
    "book": "built, rendered, compared",
    "appendices": "pages on the whole study",
    "releases": "records packed and taken",
    "pages": "a page, opened and run",
    "study": "the desk of a chapter",
    "preflight": "before hours are spent",
    "judging": "claims and verdicts",
    "register": "every chapter by name",
    "chapters": "estimates, views, plots",
    "jobs": "what is measured",
    "figures": "how figures look",
    "measures": "what a pair shows",
    "estimates": "statistics, intervals",
    "lab": "trains small models",
    "records": "tables on disk",
    "checkpoints": "files and the Hub",
    "geometry": "tensors",
}
GROUND = "ground"
#: Modules that belong to a wing of another name; every other module of the package's own folder is ground.
OF_A_WING = {"cli_options": "cli"}

_WIDTH, _MARGIN, _STOREY, _BOX, _LANE, _GAP = 1110, 14, 78, (254, 46), 16, 18
_STYLE = """\
text { font-family: system-ui, sans-serif; font-size: 12.5px; fill: #3b4252; text-anchor: middle; }
.name { font-size: 14.5px; font-weight: 600; fill: #1b2430; }
.box { fill: #eef2f7; stroke: #6b7a90; }
.ground { fill: #e3ded2; stroke: #8a7f66; }
.arrow { fill: none; stroke: #6b7a90; stroke-width: 1.4; }
.head { fill: #6b7a90; }
@media (prefers-color-scheme: dark) {
  text { fill: #c3ccd9; }
  .name { fill: #f2f5f9; }
  .box { fill: #28313e; stroke: #8fa0b8; }
  .ground { fill: #38342a; stroke: #b0a485; }
  .arrow { stroke: #8fa0b8; }
  .head { fill: #8fa0b8; }
}"""


@dataclass(frozen=True)
class Place:
    """A wing's box, or, without a wing, a lane by which an arrow passes a storey."""

    storey: int
    wing: str = ""
    arrow: tuple[str, str] = ("", "")


def modules() -> list[Path]:
    """Every module of the package, sorted by its place."""
    return sorted(PACKAGE.rglob("*.py"))


def wing_of(path: Path) -> str:
    """The wing of a module, "ground" for one on which all may stand."""
    return _wing(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))


def imported(path: Path) -> Iterator[str]:
    """Full names of what a module imports from this package, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{_module(path, node)}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith("threegates."))


def wings_below(path: Path) -> set[str]:
    """The other wings that a module imports, the ground included."""
    return {_wing(name.split(".")[1]) for name in imported(path)} - {wing_of(path)}


def arrows() -> dict[str, set[str]]:
    """For each wing the wings that it imports, without the ground."""
    found: dict[str, set[str]] = {wing: set() for wing in WINGS}
    for path in modules():
        if wing_of(path) != GROUND:
            found[wing_of(path)] |= wings_below(path) - {GROUND}
    return found


def storeys(below: Mapping[str, set[str]]) -> dict[str, int]:
    """How high each wing stands: one above the highest that it imports, from 1."""
    found: dict[str, int] = {}
    for wing in reversed(WINGS):
        found[wing] = 1 + max((found[other] for other in below[wing]), default=0)
    return found


def shortest(below: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that no way over other wings tells already, in the order of the wings."""
    reached: dict[str, set[str]] = {}
    for wing in reversed(WINGS):
        reached[wing] = below[wing].union(*(reached[other] for other in below[wing]))
    return [
        (upper, lower)
        for upper in WINGS
        for lower in WINGS
        if lower in below[upper] and not any(lower in reached[other] for other in below[upper])
    ]


def picture() -> str:
    """The house as SVG."""
    below = arrows()
    heights, shown = storeys(below), shortest(below)
    rows = _ordered(_rows(heights, shown), shown)
    middles = {place: x for row in rows.values() for place, x in _laid(row).items()}
    counts = {
        wing: sum(wing_of(path) == wing and path.stem != "__init__" for path in modules()) for wing in WINGS
    }
    top = max(heights.values())
    drawn = [_arrow(edge, heights, middles, top) for edge in shown]
    drawn += [_box(place, x, counts, top) for place, x in middles.items() if place.wing]
    height = (top + 1) * _STOREY
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
            "<title>The wings of the house, each above what it imports</title>",
            f"<style>\n{_STYLE}\n</style>",
            *drawn,
            _ground(height),
            "</svg>\n",
        ]
    )


def _wing(name: str) -> str:
    name = OF_A_WING.get(name, name)
    return name if name in WINGS else GROUND


def _module(path: Path, node: ast.ImportFrom) -> str:
    """The module that an import names; one dot stays in the folder."""
    if not node.level:
        return node.module or ""
    folder = ["threegates", *path.relative_to(PACKAGE).parts[:-1]]
    return ".".join([*folder[: len(folder) - node.level + 1], *filter(None, [node.module])])


def _rows(heights: Mapping[str, int], shown: list[tuple[str, str]]) -> dict[int, list[Place]]:
    """The boxes of each storey, and the lanes of arrows that pass it."""
    rows = {
        storey: [Place(storey, wing) for wing in WINGS if heights[wing] == storey]
        for storey in range(max(heights.values()), 0, -1)
    }
    for upper, lower in shown:
        for storey in range(heights[upper] - 1, heights[lower], -1):
            rows[storey].append(Place(storey, arrow=(upper, lower)))
    return rows


def _ordered(rows: dict[int, list[Place]], shown: list[tuple[str, str]]) -> dict[int, list[Place]]:
    """Each storey sorted by where its neighbours stand, so that few arrows cross."""
    for sweep in range(8):
        middles = {place: x for row in rows.values() for place, x in _laid(row).items()}
        step = 1 if sweep % 2 else -1
        for storey, row in rows.items():
            wanted = {place: _wanted(place, storey + step, middles, shown) for place in row}
            rows[storey] = sorted(row, key=lambda place: wanted[place])
            middles |= _laid(rows[storey])
    return rows


def _wanted(place: Place, storey: int, middles: Mapping[Place, float], shown: list[tuple[str, str]]) -> float:
    """The mean place of what an arrow joins to this one on another storey; where it stands, if nothing is."""
    own = [edge for edge in shown if edge == place.arrow or place.wing in edge]
    near = [
        x
        for other, x in middles.items()
        if other.storey == storey and any(other.arrow == edge or other.wing in edge for edge in own)
    ]
    return sum(near) / len(near) if near else middles[place]


def _laid(row: list[Place]) -> dict[Place, float]:
    """The middle of each place of a storey, the whole storey in the middle of the picture."""
    widths = [_BOX[0] if place.wing else _LANE for place in row]
    x = (_WIDTH - sum(widths) - _GAP * (len(row) - 1)) / 2
    found = {}
    for place, width in zip(row, widths, strict=True):
        found[place] = x + width / 2
        x += width + _GAP
    return found


def _y(storey: int, top: int) -> int:
    """Upper edge of a storey's boxes."""
    return _MARGIN + (top - storey) * _STOREY


def _arrow(
    edge: tuple[str, str], heights: Mapping[str, int], middles: Mapping[Place, float], top: int
) -> str:
    upper, lower = edge
    x, y = middles[Place(heights[upper], upper)], _y(heights[upper], top) + _BOX[1]
    path = [f"M{x:.0f} {y}"]
    for storey in range(heights[upper] - 1, heights[lower] - 1, -1):
        last = storey == heights[lower]
        place = Place(storey, lower) if last else Place(storey, arrow=edge)
        there, under = middles[place], _y(storey, top) - (6 if last else 0)
        path.append(f"C{x:.0f} {y + 16} {there:.0f} {under - 16} {there:.0f} {under}")
        x, y = there, under
        if not last:
            y += _BOX[1]
            path.append(f"V{y}")
    head = f"M{x - 4.5:.1f} {y - 1}L{x:.0f} {y + 6}L{x + 4.5:.1f} {y - 1}Z"
    title = f"<title>{upper} imports {lower}</title>"
    return f'<g>{title}<path class="arrow" d="{"".join(path)}"/><path class="head" d="{head}"/></g>'


def _box(place: Place, x: float, counts: Mapping[str, int], top: int) -> str:
    y, (width, height) = _y(place.storey, top), _BOX
    count = f"{counts[place.wing]} module" + "s" * (counts[place.wing] != 1)
    return (
        f'<g><rect class="box" x="{x - width / 2:.0f}" y="{y}" width="{width}" height="{height}" rx="6"/>'
        f'<text class="name" x="{x:.0f}" y="{y + 19}">{escape(place.wing)}</text>'
        f'<text x="{x:.0f}" y="{y + 36}">{escape(WINGS[place.wing])} · {count}</text></g>'
    )


def _ground(height: int) -> str:
    """The ground's box, over the whole width, with the names of its modules."""
    names = [path.stem for path in modules() if wing_of(path) == GROUND and path.stem != "__init__"]
    y, wide = height - _STOREY + _MARGIN, _WIDTH - 2 * _MARGIN
    return (
        f'<g><rect class="box ground" x="{_MARGIN}" y="{y}" width="{wide}" height="{_BOX[1]}" rx="6"/>'
        f'<text class="name" x="{_WIDTH // 2}" y="{y + 19}">ground</text>'
        f'<text x="{_WIDTH // 2}" y="{y + 36}">{escape(" · ".join(names))}</text></g>'
    )


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
