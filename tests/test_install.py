"""What a user gets who only installs the package: a light import, every module without development
tools, extras that hold what their users import, a mended torchvision."""

import ast
import json
import os
import subprocess
import sys
import textwrap
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

root = Path(__file__).resolve().parent.parent
package = root / "mfmda"
settings = ConfigParser(delimiters=["="], interpolation=None)
settings.read(root / "settings.ini")
cfg = settings["DEFAULT"]
EXTRAS = "report data notebook reproduce optional export".split()  # that users may want
# modules that are of no use without an extra
OWN_EXTRA = {"study.figures": "report", "use.report": "report"}


def module_name(path):
    "mfmda/stage1/adaptor.py -> stage1.adaptor"
    return ".".join(path.relative_to(package).with_suffix("").parts)


files = {module_name(p): p for p in sorted(package.rglob("*.py")) if not p.name.startswith("_")}


def declared(*extras):
    "Distributions that settings.ini lists for extras; without any, for everybody."
    keys = [f"{extra}_requirements" for extra in extras] or ["requirements"]
    lines = [line for key in keys for line in cfg[key].split("\n") if line.strip()]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def brought_along(names):
    "Distributions that pip installs for `names`."
    found, new = set(), set(names)
    while new:
        name = new.pop()
        found.add(name)
        try:
            lines = map(Requirement, requires(name) or [])
        except PackageNotFoundError:  # of another system
            continue
        wanted = [r for r in lines if not r.marker or r.marker.evaluate({"extra": ""})]
        new |= {canonicalize_name(r.name) for r in wanted} - found
    return found


provides = {
    name: {canonicalize_name(d) for d in distributions}
    for name, distributions in packages_distributions().items()
}


def owners(name):
    "Distributions that provide an importable name."
    return provides.get(name, {canonicalize_name(name)})


def python(code, timeout=120, folder=None):
    "Run `code` in a fresh interpreter, with `folder` before everything else on its path."
    path = os.pathsep.join(str(p) for p in (folder, root) if p)
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | dict(PYTHONPATH=path),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def names_of(node):
    "Third-party packages that an import statement names."
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        names = [node.module]
    return {n.partition(".")[0] for n in names} - set(sys.stdlib_module_names) - {"mfmda"}


def imports(path):
    "Third-party packages of a module: those imported with it, and those imported in a function."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    inside = {n for f in ast.walk(tree) if isinstance(f, functions) for n in ast.walk(f)}
    at_import, on_use = set(), set()
    for node in ast.walk(tree):
        (on_use if node in inside else at_import).update(names_of(node))
    return at_import, on_use


def test_import_is_light():
    "`import mfmda` loads nothing heavy; `from mfmda import adapt` then does."
    run = python("""
        import sys, time
        start = time.perf_counter()
        import mfmda
        took = time.perf_counter() - start
        heavy = {"torch", "numpy", "matplotlib"} & set(sys.modules)
        print(mfmda.__version__, took, sorted(heavy))
        from mfmda import adapt
        assert adapt.__module__ == "mfmda.use.camera" and "torch" in sys.modules
    """)
    assert run.returncode == 0, run.stderr
    version, seconds, loaded = run.stdout.split()
    assert float(seconds) < 2 and loaded == "[]" and version == cfg["version"]


@pytest.mark.parametrize("module", files)
def test_module_needs_only_what_is_declared(module):
    "What a module imports with itself comes with the package; the rest comes with an extra."
    at_import, on_use = imports(files[module])
    allowed = declared()
    if module in OWN_EXTRA:
        allowed |= declared(OWN_EXTRA[module])
    lost = {n for n in at_import if not owners(n) & allowed}
    assert not lost, "add it to requirements in settings.ini, or import it where it is used"
    lost = {n for n in on_use if not owners(n) & (allowed | declared(*EXTRAS))}
    assert not lost, "add it to an extra in settings.ini"


@pytest.mark.parametrize("extra", ["report", "data"])
def test_an_extra_holds_what_modules_import(extra):
    "Nobody is asked to install a package that no module uses."
    used = {n for path in files.values() for names in imports(path) for n in names}
    used = {owner for name in used for owner in owners(name)}
    assert not declared(extra) - used


def test_the_sliders_of_pages_need_the_extra_notebook():
    "The extra `notebook` is what nbs/explorer.py imports, and no module does."
    sliders = imports(root / "nbs" / "explorer.py")
    assert declared("notebook") <= {
        owner for n in sliders[0] | sliders[1] for owner in owners(n)
    }
    assert not any("ipywidgets" in names for p in files.values() for names in imports(p))


def absent(*extras):
    "Importable names that an installation without development tools, with `extras`, lacks."
    there = brought_along(declared() | (declared(*extras) if extras else set()))
    tools = declared(*EXTRAS, "dev") - there
    return {name for name in provides if owners(name) <= tools}


def without(names, code):
    "`code` in an interpreter that cannot import `names`."
    hide = f"""
        import sys
        from importlib.machinery import PathFinder
        class Installed(PathFinder):
            @classmethod
            def find_spec(cls, name, path=None, target=None):
                if name.partition(".")[0] in {sorted(names)!r}:
                    return None
                return super().find_spec(name, path, target)
        sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
    """
    return python(textwrap.dedent(hide) + textwrap.dedent(code))


def imported_alone(modules, *extras):
    """What goes wrong when each module is imported alone, without tools; "" where nothing does.

    A module has a process of its own, forked from one that has loaded the slow packages and
    forgotten mfmda.
    """
    run = without(
        absent(*extras),
        f"""
        import importlib, json, multiprocessing, traceback
        import mfmda.stage1.ddpm, mfmda.stage2.foundation

        for name in [n for n in sys.modules if n.partition(".")[0] == "mfmda"]:
            del sys.modules[name]

        def alone(name):
            try:
                module = importlib.import_module("mfmda." + name)
                missing = [n for n in module.__all__ if not hasattr(module, n)]
            except BaseException:
                return traceback.format_exc()
            return f"missing: {{missing}}" if missing else ""

        modules = {list(modules)!r}
        with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
            print(json.dumps(dict(zip(modules, pool.map(alone, modules, chunksize=1)))))
        """,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def imported():
    plain = [module for module in files if module not in OWN_EXTRA]
    return imported_alone(plain) | imported_alone(OWN_EXTRA, "report")


def test_tools_are_hidden():
    "The next test would find an import of a tool: the tools are absent in its interpreters."
    assert {"nbdev", "fastcore", "pytest", "papermill", "snakemake", "jupyterlab"} <= absent()
    assert {"matplotlib", "jinja2", "pooch", "ipywidgets"} & absent("report") == {
        "pooch",
        "ipywidgets",
    }
    assert "ModuleNotFoundError" in without({"yaml"}, "import mfmda.study.profiles").stderr


@pytest.mark.parametrize("module", files)
def test_module_imports_alone_without_development_tools(imported, module):
    "A user without nbdev, pytest, Snakemake and the extras can import every module."
    assert not imported[module], imported[module][-2000:]


def test_a_command_without_its_extra_says_what_to_install(tmp_path):
    "One line that names the extra, and no traceback."
    code = f"""
        import os
        os.chdir({str(tmp_path)!r})
        from mfmda.use.cli import main
        sys.exit(main("report --model run --images photos --out report.html".split()))
    """
    run = without(absent(), code)
    assert run.returncode == 2, run.stderr[-2000:]
    assert "pip install 'mfmda[report]'" in run.stderr and run.stderr.count("\n") == 1


def fake_torchvision(folder, body):
    "A package `torchvision` in `folder` that runs `body` when it is imported."
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(textwrap.dedent(body))
    return folder


def test_torchvision_beside_a_cpu_torch_is_mended(tmp_path):
    "A torchvision whose operators the installed torch lacks can be imported after the mending."
    body = """
        import torch
        torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: dets)
        torch.library.register_fake("torchvision::qnms")(lambda dets, scores, iou_threshold: dets)
        works = True
    """
    folder = fake_torchvision(tmp_path, body)
    broken = python("import torchvision", folder=folder).stderr
    assert "operator torchvision::nms does not exist" in broken
    code = """
        from mfmda.core.runtime import mend_torchvision
        mend_torchvision()
        mend_torchvision()
        import torchvision
        assert torchvision.works
    """
    mended = python(code, folder=folder)
    assert mended.returncode == 0, mended.stderr


@pytest.mark.parametrize(
    "error, says",
    [
        ("RuntimeError('libcudart is broken')", "RuntimeError: libcudart is broken"),
        ("ImportError('no module _C')", "ImportError: no module _C"),
        ("OSError('disk')", "OSError: disk"),
    ],
)
def test_other_torchvision_errors_are_not_swallowed(tmp_path, error, says):
    "What the mending does not understand reaches the user as it is."
    folder = fake_torchvision(tmp_path, f"raise {error}")
    code = "from mfmda.core.runtime import mend_torchvision; mend_torchvision()"
    run = python(code, folder=folder)
    assert run.returncode == 1 and run.stderr.splitlines()[-1] == says
