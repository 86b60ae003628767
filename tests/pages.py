"""Keep modules, notebooks and README.md equal: `python tests/pages.py CHECK`, CHECK = modules, clean, readme, write-clean or write-readme.

The notebooks are the source. Every check works on a copy, so that a failing check changes nothing.
"""
import argparse
import difflib
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
index = root / "nbs" / "index.ipynb"
largest_notebook = 1_000_000  # bytes
shown_profiles = ("mini3", "real64", "real64_back", "mini_vit", "dev", "dev64", "shots64")


def notebooks():
    "Every notebook of the project, pages and experiments."
    return sorted(p for p in (root / "nbs").rglob("*.ipynb") if not any(part.startswith((".", "_")) for part in p.relative_to(root).parts))


def difference(ours, expected, name, limit=40):
    "The first lines of a unified diff between two texts."
    lines = list(difflib.unified_diff(ours.splitlines(), expected.splitlines(), f"{name} (stored)", f"{name} (expected)", lineterm="", n=1))
    return "\n".join(lines[:limit] + ([f"... {len(lines) - limit} more lines"] if len(lines) > limit else []))


def check_modules():
    "Each module in mfmda/ is what its notebook exports, and no module lacks a notebook."
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        shutil.copy(root / "settings.ini", tmp)
        (tmp / "nbs").mkdir()
        for page in (root / "nbs").glob("*.ipynb"):
            shutil.copy(page, tmp / "nbs")
        env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
        subprocess.run([sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"], cwd=tmp, env=env, check=True)
        exported = {p.name: p.read_text(encoding="utf-8") for p in (tmp / "mfmda").glob("*.py")}
    stored = {p.name: p.read_text(encoding="utf-8") for p in (root / "mfmda").glob("*.py")}
    faults = [f"mfmda/{n} has no notebook" for n in sorted(stored.keys() - exported.keys())]
    faults += [f"mfmda/{n} is missing" for n in sorted(exported.keys() - stored.keys())]
    faults += [difference(stored[n], exported[n], f"mfmda/{n}") for n in sorted(stored.keys() & exported.keys()) if stored[n] != exported[n]]
    return faults, f"{len(exported)} modules equal their notebooks"


def without_widgets(nb):
    "Drop, in place, what only a running kernel can show: of a widget its picture stays (see `config.Explorer`), one without a picture goes, as a progress bar."
    nb["metadata"].pop("widgets", None)
    for cell in nb["cells"]:
        for output in (outputs := cell.get("outputs", [])).copy():
            data = output.get("data", {})
            views = [mime for mime in data if mime.startswith("application/vnd.jupyter.widget")]
            for mime in views:
                del data[mime]
            if views and not any(mime.startswith("image/") for mime in data):
                outputs.remove(output)


def cleaned(text):
    "The text of a notebook as it is stored: without widgets, and as nbdev_clean leaves it."
    from execnb.nbio import loads, nb2str
    from nbdev.clean import clean_nb
    from nbdev.config import get_config

    os.chdir(root)
    nb = loads(text)
    without_widgets(nb)
    clean_nb(nb, allowed_cell_metadata_keys=get_config().allowed_cell_metadata_keys.split())
    return nb2str(nb)


def check_clean():
    "Each notebook is as `write-clean` leaves it, under 1 MB, and stores no error output."
    faults = []
    for path in notebooks():
        name, text = path.relative_to(root), path.read_text(encoding="utf-8")
        if (clean := cleaned(text)) != text:
            faults.append(f"{name} is not clean\n" + difference(text, clean, str(name), 12))
        if len(text.encode()) > largest_notebook:
            faults.append(f"{name} has {len(text.encode()):,} bytes, more than {largest_notebook:,}: draw its pictures at a lower dpi")
        if any(o.get("output_type") == "error" for c in json.loads(text)["cells"] for o in c.get("outputs", [])):
            faults.append(f"{name} stores an error output")
    return faults, f"{len(notebooks())} notebooks are clean"


def write_clean():
    "Clean every notebook in place; one that is clean is not touched."
    for path in notebooks():
        text = path.read_text(encoding="utf-8")
        if (clean := cleaned(text)) != text:
            path.write_text(clean, encoding="utf-8")
    return [], "notebooks cleaned"


def from_root(target):
    "A link as written in nbs/, rewritten to start at the project's root, where README.md lies."
    if re.match(r"([a-z][a-z0-9+.-]*:|#|/)", target, re.I):
        return target
    path, hash_, anchor = target.partition("#")
    return posixpath.normpath(posixpath.join("nbs", path)) + hash_ + anchor


def render(nb):
    "Markdown of the index page: outputs as stored, code of `#| echo: false` cells left out, links relative to the root."
    from nbconvert import MarkdownExporter

    cells = []
    for cell in nb.cells:
        directives = re.findall(r"^#\|\s*(.+?)\s*$", cell.source, re.M) if cell.cell_type == "code" else []
        if "hide" in directives:
            continue
        if "echo: false" in directives:
            cell.metadata["transient"] = {"remove_source": True}
        if cell.cell_type == "code":
            cell.source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|"))
        cells.append(cell)
    nb.cells = cells
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = re.sub(r"(\]\()([^)\s]+)(\))", lambda m: m[1] + from_root(m[2]) + m[3], text)
    text = re.sub(r'((?:src|href)=")([^"]+)(")', lambda m: m[1] + from_root(m[2]) + m[3], text)
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.splitlines())).strip()
    return f"<!-- Rendered from nbs/index.ipynb by `make pages`: edit that page. -->\n\n{text}\n"


def read_index(execute=False):
    "The index page as stored, or with its cells executed now."
    import nbformat

    nb = nbformat.read(index, as_version=4)
    if execute:
        from nbclient import NotebookClient

        NotebookClient(nb, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(index.parent)}}).execute()
    return nb


def dead_links(text):
    "Relative link targets of README.md that do not exist."
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    return sorted({t for t in targets if not re.match(r"([a-z][a-z0-9+.-]*:|#)", t, re.I) and not (root / t.partition("#")[0]).exists()})


def own_results():
    "Whether result files that the README shows differ from the commit: a run made on this machine, which README.md need not follow."
    run = subprocess.run(["git", "status", "--porcelain", "--", *(f"figures/{p}" for p in shown_profiles)], cwd=root, capture_output=True, text=True)
    return run.returncode != 0 or bool(run.stdout.strip())


def check_readme():
    "README.md is the stored index page, which is what the page gives when executed on the committed result files."
    stored = (root / "README.md").read_text(encoding="utf-8") if (root / "README.md").exists() else ""
    faults, variants = [], [(False, "as stored")]
    if own_results():
        print("figures/ holds results that are not committed, so the README's results are compared with the stored page only")
    else:
        variants.append((True, "as executed now"))
    for execute, what in variants:
        expected = render(read_index(execute))
        if expected != stored:
            faults.append(f"README.md is not nbs/index.ipynb {what}\n" + difference(stored, expected, "README.md"))
    faults += [f"README.md links to {target}, which does not exist" for target in dead_links(stored)]
    return faults, "README.md equals nbs/index.ipynb"


def write_readme():
    "Execute the index page, keep its outputs, and write README.md from it."
    import nbformat

    nb = read_index(execute=True)
    nbformat.write(nb, index)
    index.write_text(cleaned(index.read_text(encoding="utf-8")), encoding="utf-8")
    partial = root / "README.md.partial"
    partial.write_text(render(read_index()), encoding="utf-8")
    partial.replace(root / "README.md")
    return [], "README.md written"


def main():
    checks = {"modules": check_modules, "clean": check_clean, "readme": check_readme, "write-clean": write_clean, "write-readme": write_readme}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("check", choices=checks)
    faults, success = checks[parser.parse_args().check]()
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        sys.exit("Mend it with `make pages`, which exports, cleans and renders from the notebooks.")
    print(success)


if __name__ == "__main__":
    main()
