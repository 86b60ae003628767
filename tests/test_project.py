"""The frame: metadata, what the wheel holds, pins against ranges, the order of the rooms, make."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from email import message_from_string
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

root = Path(__file__).resolve().parent.parent
settings = ConfigParser(delimiters=["="], interpolation=None)
settings.read(root / "settings.ini")
cfg = settings["DEFAULT"]
package = root / "mfmda"
modules = sorted(p for p in package.rglob("*.py") if not p.name.startswith("_"))
# the pages' numbers are the order of the rooms: nbs/12_stage1.adaptor.ipynb -> stage1.adaptor
pages = sorted((root / "nbs").glob("[0-9]*.ipynb"))
rooms = [page.stem.partition("_")[2] for page in pages]
EXTRAS = "report data notebook reproduce optional export dev benchmark browser docs".split()
KINDS = [key for key in cfg if key.endswith("requirements")]
DATA = ["profiles/*.yaml", "rows.yaml", "weights/**/*", "**/*.j2"]


def module_name(path):
    "mfmda/stage1/adaptor.py -> stage1.adaptor"
    return ".".join(path.relative_to(package).with_suffix("").parts)


def requirements(key):
    return [Requirement(line) for line in cfg[key].split("\n") if line.strip()]


def pins():
    "Name -> exact version of constraints.txt; every line must be such a pin."
    lines = (root / "constraints.txt").read_text().splitlines()
    parsed = [Requirement(line) for line in (line.partition("#")[0] for line in lines) if line]
    exact = {}
    for requirement in parsed:
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", requirement
        exact[canonicalize_name(requirement.name)] = specifier.version
    return exact


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    "A copy of what a build reads, so that building leaves nothing in the checkout."
    copy = tmp_path_factory.mktemp("build") / "project"
    at_the_top = {"runs", "figures", "data", "build", "dist"}

    def left_out(folder, names):
        here = at_the_top if Path(folder) == root else set()
        hidden = {n for n in names if n.startswith(".") or n.endswith((".egg-info", "cache__"))}
        return hidden | (here & set(names))

    shutil.copytree(root, copy, ignore=left_out)
    return copy


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    "The wheel that `pip install .` would build."
    out = tmp_path_factory.mktemp("wheel")
    words = "wheel --no-deps --no-build-isolation --no-index -w".split()
    command = [sys.executable, "-m", "pip", *words, out, "."]
    run = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return next(out.glob("mfmda-*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    "A folder outside the checkout in which the wheel is installed."
    folder = tmp_path_factory.mktemp("site")
    words = ["install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    return folder


def outside(site, code):
    "Run Python on the installed wheel, away from the checkout."
    env = {"PYTHONPATH": str(site), "PATH": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=site.parent, env=env, capture_output=True, text=True)


def test_wheel_holds_every_module_profile_and_template_and_nothing_else(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    wanted = [*package.rglob("*.py"), *(p for pattern in DATA for p in package.glob(pattern))]
    wanted = [path for path in wanted if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in wanted)
    assert len(modules) >= 30 and len(list(package.glob("profiles/*.yaml"))) >= 10
    assert names == {p.relative_to(root).as_posix() for p in wanted}


def test_installed_wheel_imports_every_module_outside_the_checkout(site):
    names = [module_name(path) for path in modules]
    assert len(names) >= 30
    code = f"import importlib, mfmda\nassert mfmda.__file__.startswith({str(site)!r})\n"
    code += f"for name in {names!r}: importlib.import_module('mfmda.' + name)"
    run = outside(site, code)
    assert run.returncode == 0, run.stderr


def test_installed_wheel_loads_every_profile_row_and_template(site):
    code = (
        "from mfmda.study.profiles import ROWS, load_profile, profile_names\n"
        "assert len(profile_names()) >= 10 and len(ROWS) >= 40\n"
        "for name in profile_names(): load_profile(name)\n"
        "import importlib.resources\n"
        "assert importlib.resources.files('mfmda.use').joinpath('report.html.j2').is_file()\n"
        "from mfmda import FundusSet, Segmenter, Task, adapt\n"
    )
    run = outside(site, code)
    assert run.returncode == 0, run.stderr


def test_installed_wheel_answers_on_the_command_line_without_torch(site):
    code = (
        "import sys; from mfmda.use.cli import main; status = main(['--help'])\n"
        "assert not {'torch', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "sys.exit(status)"
    )
    run = outside(site, code)
    assert run.returncode == 0 and "usage" in run.stdout.lower(), run.stderr


def test_metadata_is_complete_and_read_from_settings(wheel):
    archive = zipfile.ZipFile(wheel)
    info = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    meta = message_from_string(archive.read(info).decode())
    assert (meta["Name"], meta["Version"]) == ("mfmda", cfg["version"])
    assert meta["Summary"] == cfg["description"] and meta["Author"]
    assert meta["Requires-Python"] == f">={cfg['min_python']}"
    assert meta["License-File"] == "LICENSE"
    assert "Apache-2.0" in (meta["License-Expression"] or meta["License"])
    assert meta["Description-Content-Type"] == "text/markdown"
    assert meta.get_payload().strip() == (root / "README.md").read_text().strip()
    needed = {str(Requirement(r)) for r in meta.get_all("Requires-Dist") if "extra" not in r}
    assert needed == {str(r) for r in requirements("requirements")}
    assert set(meta.get_all("Provides-Extra")) == set(EXTRAS)
    entry_points = archive.read(info.replace("METADATA", "entry_points.txt")).decode()
    assert "mfmda = mfmda.use.cli:main" in entry_points
    assert "mfmda = mfmda._modidx:d" in entry_points


@pytest.mark.parametrize("key", KINDS)
def test_every_requirement_has_a_pin_within_its_range(key):
    exact, wanted = pins(), requirements(key)
    assert wanted
    for requirement in wanted:
        version = exact[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement


def test_user_requirements_are_ranges_and_only_what_is_used_inside_is_bounded_above():
    bounded = set()
    for requirement in requirements("requirements"):
        operators = {s.operator for s in requirement.specifier}
        assert not operators & {"==", "==="}, requirement
        bounded |= {requirement.name} if operators & {"<", "<="} else set()
    assert bounded == {"peft", "diffusers"}


def test_one_version_everywhere():
    import mfmda

    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    assert mfmda.__version__ == cfg["version"] == citation["version"]
    preferred = citation["preferred-citation"]
    authors = [a["family-names"] for a in preferred["authors"]]
    assert authors == "Jiang Lei Wu Wu Li Xie Zhang Wang".split()
    assert "2503.00802" in preferred["url"]


def test_every_room_has_a_page_and_every_page_a_room():
    assert len(rooms) >= 30
    assert sorted(rooms) == sorted(map(module_name, modules))


def imported(path):
    "Rooms that a module imports, at its top or inside a function."
    home = module_name(path).split(".")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [] if node.level >= len(home) else home[: -node.level]
            name = ".".join([*base, node.module or ""]).strip(".")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mfmda."):
            name = node.module.removeprefix("mfmda.")
        else:
            continue
        if name in rooms:
            yield name
        else:  # from mfmda.study import costs
            yield from (f"{name}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules, ids=module_name)
def test_a_room_imports_only_rooms_above_it(path):
    floor = {name: number for number, name in enumerate(rooms)}
    here = floor[module_name(path)]
    below = [name for name in imported(path) if floor[name] >= here]
    assert not below, f"{module_name(path)} imports {below}, which do not stand above it"


def test_some_rooms_import_others_so_that_the_rule_is_looked_at():
    assert "core.files" in imported(package / "core" / "settings.py")
    assert "stage1.adaptor" in imported(package / "stage1" / "objective.py")


MACHINE = r"(?<![\w.])/(work|root|home|Users|opt)/[\w.-]+/[^\s\"]*|\b(TODO|FIXME)\b"
TEXTS = [
    "*",
    "nbs/**/*.ipynb",
    "nbs/*.py",
    "mfmda/**/*.py",
    "figures/**/*.json",
    "figures/**/*.md",
]


def test_no_trace_of_one_machine_and_no_leftovers():
    texts = [p for pattern in TEXTS for p in root.glob(pattern) if p.is_file()]
    texts = [p for p in texts if not p.name.startswith(".git")]
    assert len(texts) >= 100
    for path in texts:
        found = re.search(MACHINE, path.read_text(encoding="utf-8", errors="replace"))
        assert not found, f"{path.relative_to(root)}: {found[0]}"


def test_make_names_a_python_that_is_too_old(source, tmp_path):
    old = tmp_path / "old-python"
    old.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && { echo "Python 3.9.6"; exit 0; }\nexit 1\n'
    )
    old.chmod(0o755)
    command = ["make", "test", f"PYTHON={old}"]
    run = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert run.returncode == 2 and "needs Python 3.11 or newer" in run.stderr
    assert "Python 3.9.6" in run.stderr and not (source / ".venv").exists()


def test_make_alone_explains_every_target(source):
    shown = subprocess.run(
        ["make"], cwd=source, capture_output=True, text=True, check=True
    ).stdout
    for target in "reproduce test pages lab clean".split():
        assert re.search(rf"^  {target} ", shown, re.M), target
