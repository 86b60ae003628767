"""The frame: metadata, what the wheel holds, pins against ranges, the order of the rooms, the Makefile."""
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
modules = sorted((root / "mfmda").glob("[!_]*.py"))
rooms = "config phantom data ddpm encoders adaptor translate foundation alignment segment metrics baselines report pipeline adapt datasets scale command".split()


def requirements(key):
    return [Requirement(line) for line in cfg[key].split("\n") if line.strip()]


def pins():
    "Name -> exact version of constraints.txt; every line must be such a pin."
    lines = [line.partition("#")[0].strip() for line in (root / "constraints.txt").read_text().splitlines()]
    parsed = [Requirement(line) for line in lines if line]
    assert all(len(r.specifier) == 1 and next(iter(r.specifier)).operator == "==" for r in parsed)
    return {canonicalize_name(r.name): next(iter(r.specifier)).version for r in parsed}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    "A copy of what a build reads, so that building leaves nothing in the checkout."
    copy = tmp_path_factory.mktemp("build") / "project"
    shutil.copytree(root, copy, ignore=lambda folder, names: [
        n for n in names if n.startswith(".") or n in {"runs", "figures", "data", "build", "dist", "__pycache__"} or n.endswith(".egg-info")])
    return copy


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    "The wheel that `pip install .` would build."
    out = tmp_path_factory.mktemp("wheel")
    run = subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, "."],
                         cwd=source, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return next(out.glob("mfmda-*.whl"))


def test_wheel_holds_the_modules_and_nothing_else(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert names == {f"mfmda/{p.name}" for p in (root / "mfmda").glob("*.py")}


def test_metadata_is_complete_and_read_from_settings(wheel):
    archive = zipfile.ZipFile(wheel)
    info = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    meta = message_from_string(archive.read(info).decode())
    assert (meta["Name"], meta["Version"], meta["Summary"]) == ("mfmda", cfg["version"], cfg["description"])
    assert meta["Author"] and meta["Requires-Python"] == f">={cfg['min_python']}" and meta["License-File"] == "LICENSE"
    assert "Apache-2.0" in (meta["License-Expression"] or meta["License"])
    assert meta["Description-Content-Type"] == "text/markdown" and meta.get_payload().strip() == (root / "README.md").read_text().strip()
    needed = {str(Requirement(r)) for r in meta.get_all("Requires-Dist") if "extra" not in r}
    assert needed == {str(r) for r in requirements("requirements")}
    assert set(meta.get_all("Provides-Extra")) == {"reproduce", "dev", "optional", "export", "benchmark", "browser"}
    entry_points = archive.read(info.replace("METADATA", "entry_points.txt")).decode()
    assert "mfmda = mfmda.command:main" in entry_points and "mfmda = mfmda._modidx:d" in entry_points


def test_installed_wheel_answers_on_the_command_line(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel], check=True)
    code = "import mfmda, sys; assert mfmda.__file__.startswith(sys.path[1]), mfmda.__file__; from mfmda.command import main; sys.argv = ['mfmda', '--help']; main()"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""}, capture_output=True, text=True)
    assert run.returncode == 0 and "usage" in run.stdout.lower(), run.stderr


@pytest.mark.parametrize("key", ["requirements", "reproduce_requirements", "dev_requirements", "optional_requirements", "export_requirements", "benchmark_requirements", "browser_requirements"])
def test_every_requirement_has_a_pin_within_its_range(key):
    exact = pins()
    for requirement in requirements(key):
        assert requirement.specifier.contains(exact[canonicalize_name(requirement.name)]), requirement


def test_user_requirements_are_ranges():
    assert all(s.operator not in ("==", "===", "<", "<=") for r in requirements("requirements") for s in r.specifier)


def test_one_version_everywhere():
    import mfmda
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    assert mfmda.__version__ == cfg["version"] == citation["version"]
    authors = [a["family-names"] for a in citation["preferred-citation"]["authors"]]
    assert authors == "Jiang Lei Wu Wu Li Xie Zhang Wang".split() and "2503.00802" in citation["preferred-citation"]["url"]


@pytest.mark.parametrize("path", modules, ids=lambda p: p.stem)
def test_a_room_imports_only_rooms_above_it(path):
    # training is the one loop that ddpm, foundation and segment share: a helper of config's floor
    floor = {name: i for i, name in enumerate(["config", "training", *rooms[1:]])}
    siblings = {n.module.rpartition(".")[2] for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)
                and n.module and (n.level == 1 or n.module.startswith("mfmda."))}
    assert path.stem in floor and all(floor[s] < floor[path.stem] for s in siblings)


def test_no_trace_of_one_machine_and_no_leftovers():
    texts = [p for folder, ends in ((root, "*"), (root / "nbs", "**/*.ipynb"), (root / "mfmda", "*.py"), (root / "figures", "**/*.json"),
                                    (root / "figures", "**/*.md")) for p in folder.glob(ends) if p.is_file() and not p.name.startswith(".git")]
    for path in texts:
        text = path.read_text(encoding="utf-8", errors="replace")
        found = re.search(r"(?<![\w.])/(work|root|home|Users|opt)/[\w.-]+/[^\s\"]*|\b(TODO|FIXME)\b", text)
        assert not found, f"{path.relative_to(root)}: {found[0]}"


def test_make_names_a_python_that_is_too_old(source, tmp_path):
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && { echo "Python 3.9.6"; exit 0; }\nexit 1\n')
    old.chmod(0o755)
    run = subprocess.run(["make", "test", f"PYTHON={old}"], cwd=source, capture_output=True, text=True)
    assert run.returncode == 2 and "needs Python 3.11 or newer" in run.stderr and "Python 3.9.6" in run.stderr
    assert not (source / ".venv").exists()


def test_make_alone_explains_every_target(source):
    shown = subprocess.run(["make"], cwd=source, capture_output=True, text=True, check=True).stdout
    assert all(re.search(rf"^  {target} ", shown, re.M) for target in "reproduce test pages lab clean".split())
