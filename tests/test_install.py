"""What a user gets who only installs the package: a light import, every module without development tools, a mended torchvision."""
import ast
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

root = Path(__file__).resolve().parent.parent
modules = sorted(p.stem for p in (root / "mfmda").glob("[!_]*.py"))
settings = ConfigParser(delimiters=["="], interpolation=None)
settings.read(root / "settings.ini")


def declared(key):
    "Distribution names of one requirements list of settings.ini."
    return {canonicalize_name(Requirement(line).name) for line in settings["DEFAULT"][key].split("\n") if line.strip()}


def python(code, timeout=120, folder=None):
    "Run `code` in a fresh interpreter, with `folder` before everything else on its path."
    path = os.pathsep.join(str(p) for p in (folder, root) if p)
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env={**os.environ, "PYTHONPATH": path},
                          capture_output=True, text=True, timeout=timeout)


def imports(path):
    "(top-level imports, imports inside functions) of a module, as package names."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    def names(node):
        if isinstance(node, ast.Import):
            return [alias.name.partition(".")[0] for alias in node.names]
        return [node.module.partition(".")[0]] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
    lazy = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)}
    found = [(name, id(node) in lazy) for node in ast.walk(tree) for name in names(node)]
    return {n for n, inside in found if not inside}, {n for n, inside in found if inside}


def undeclared(names, allowed):
    "Third-party names that no allowed distribution provides."
    provides = packages_distributions()
    third_party = names - set(sys.stdlib_module_names) - {"mfmda"}
    return {n for n in third_party if not {canonicalize_name(d) for d in provides.get(n, [n])} & allowed}


def test_import_is_light():
    run = python("""
        import sys, time
        start = time.perf_counter()
        import mfmda
        print(time.perf_counter() - start, sorted({"torch", "numpy", "matplotlib"} & set(sys.modules)), mfmda.__version__)
    """)
    assert run.returncode == 0, run.stderr
    seconds, loaded, version = run.stdout.split()
    assert float(seconds) < 2 and loaded == "[]" and version == settings["DEFAULT"]["version"]


@pytest.mark.parametrize("module", modules)
def test_module_needs_only_what_is_declared(module):
    at_import, on_use = imports(root / "mfmda" / f"{module}.py")
    assert not undeclared(at_import, declared("requirements")), "add it to requirements in settings.ini"
    assert not undeclared(on_use, declared("requirements") | declared("reproduce_requirements") | declared("optional_requirements") | declared("export_requirements"))


@pytest.fixture(scope="module")
def imported():
    "Each module imported in an interpreter of its own, as if no development tool were installed; two at a time."
    tools = {n for n, owners in packages_distributions().items()
             if {canonicalize_name(o) for o in owners} <= declared("dev_requirements") | declared("reproduce_requirements")}
    # accelerate and torch bring these two themselves
    tools -= {"packaging", "setuptools", "pkg_resources", "_distutils_hack"}
    assert {"nbdev", "fastcore", "pytest", "papermill", "snakemake", "jupyterlab"} <= tools
    code = """
        import sys
        from importlib.machinery import PathFinder
        class Installed(PathFinder):
            @classmethod
            def find_spec(cls, name, path=None, target=None):
                return None if name.partition(".")[0] in TOOLS else super().find_spec(name, path, target)
        sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
        import mfmda.MODULE as module
        missing = [name for name in module.__all__ if not hasattr(module, name)]
        assert not missing, missing
    """
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(modules, pool.map(lambda m: python(code.replace("TOOLS", repr(tools)).replace("MODULE", m)), modules)))


@pytest.mark.parametrize("module", modules)
def test_module_imports_alone_without_development_tools(imported, module):
    assert imported[module].returncode == 0, imported[module].stderr[-2000:]


def fake_torchvision(folder, body):
    "A package `torchvision` in `folder` that runs `body` when it is imported."
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(textwrap.dedent(body))
    return folder


def test_torchvision_beside_a_cpu_torch_is_mended(tmp_path):
    folder = fake_torchvision(tmp_path, """
        import torch
        torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: dets)
        torch.library.register_fake("torchvision::qnms")(lambda dets, scores, iou_threshold: dets)
        works = True
    """)
    assert "operator torchvision::nms does not exist" in python("import torchvision", folder=folder).stderr
    mended = python("""
        from mfmda.config import mend_torchvision
        mend_torchvision(); mend_torchvision()
        import torchvision
        assert torchvision.works
    """, folder=folder)
    assert mended.returncode == 0, mended.stderr


@pytest.mark.parametrize("error", ["RuntimeError('libcudart is broken')", "ImportError('no module _C')", "OSError('disk')"])
def test_other_torchvision_errors_are_not_swallowed(tmp_path, error):
    run = python("from mfmda.config import mend_torchvision; mend_torchvision()", folder=fake_torchvision(tmp_path, f"raise {error}"))
    assert run.returncode == 1 and run.stderr.splitlines()[-1] == error.replace("('", ": ").replace("')", "")
