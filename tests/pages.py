"""Keep modules, notebooks and README.md equal: `python tests/pages.py CHECK`.

CHECK is modules, clean, readme, write-clean or write-readme.

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
    return sorted(
        p
        for p in (root / "nbs").rglob("*.ipynb")
        if not any(part.startswith((".", "_")) for part in p.relative_to(root).parts)
    )


def has_explorer(cell):
    "Whether a cell puts sliders above a figure."
    return bool(re.search(r"^(explorer = )?Explorer\(", "".join(cell["source"]), re.M))


def difference(ours, expected, name, limit=40):
    "The first lines of a unified diff between two texts."
    lines = list(
        difflib.unified_diff(
            ours.splitlines(),
            expected.splitlines(),
            f"{name} (stored)",
            f"{name} (expected)",
            lineterm="",
            n=1,
        )
    )
    return "\n".join(
        lines[:limit] + ([f"... {len(lines) - limit} more lines"] if len(lines) > limit else [])
    )


def package_files(folder):
    "The package's modules below a folder, by path."
    found = {p.relative_to(folder).as_posix(): p for p in (folder / "mfmda").rglob("*.py")}
    return {name: path.read_text(encoding="utf-8") for name, path in found.items()}


def check_modules():
    "Each module in mfmda/ is what its notebook exports, and no module lacks a notebook."
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        shutil.copy(root / "settings.ini", tmp)
        for folder, files in (
            ("nbs", "*.ipynb"),
            ("mfmda", "__init__.py"),
        ):  # the latter is not exported
            (tmp / folder).mkdir()
            for file in (root / folder).glob(files):
                shutil.copy(file, tmp / folder)
        env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
        export = "from nbdev.doclinks import nbdev_export; nbdev_export()"
        subprocess.run([sys.executable, "-c", export], cwd=tmp, env=env, check=True)
        exported, stored = package_files(tmp), package_files(root)
    faults = [f"{name} has no notebook" for name in sorted(stored.keys() - exported.keys())]
    faults += [f"{name} is missing" for name in sorted(exported.keys() - stored.keys())]
    for name in sorted(stored.keys() & exported.keys()):
        if stored[name] != exported[name]:
            faults.append(difference(stored[name], exported[name], name))
    return faults, f"{len(exported)} modules equal their notebooks"


def without_widgets(nb):
    """Drop, in place, what only a running kernel can show.

    Of a widget its picture stays (see nbs/explorer.py), one without a picture goes; so do progress
    bars and warnings, which a run writes to standard error.
    """
    nb["metadata"].pop("widgets", None)
    for cell in nb["cells"]:
        outputs = cell.get("outputs", [])
        for output in outputs.copy():
            data = output.get("data", {})
            views = [kind for kind in data if kind.startswith("application/vnd.jupyter.widget")]
            for kind in views:
                del data[kind]
            pictured = any(kind.startswith("image/") for kind in data)
            if (views and not pictured) or output.get("name") == "stderr":
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
            faults.append(
                f"{name} has {len(text.encode()):,} bytes, more than {largest_notebook:,}: "
                "draw its pictures at a lower dpi"
            )
        if any(
            o.get("output_type") == "error"
            for c in json.loads(text)["cells"]
            for o in c.get("outputs", [])
        ):
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
    """Markdown of the index page.

    Outputs as stored, code of `#| echo: false` cells left out, links relative to the root.
    """
    from nbconvert import MarkdownExporter

    cells = []
    for cell in nb.cells:
        directives = (
            re.findall(r"^#\|\s*(.+?)\s*$", cell.source, re.M)
            if cell.cell_type == "code"
            else []
        )
        if "hide" in directives:
            continue
        if "echo: false" in directives:
            cell.metadata["transient"] = {"remove_source": True}
        if cell.cell_type == "code":
            cell.source = "\n".join(
                line for line in cell.source.splitlines() if not line.startswith("#|")
            )
        cells.append(cell)
    nb.cells = cells
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = re.sub(r"(\]\()([^)\s]+)(\))", lambda m: m[1] + from_root(m[2]) + m[3], text)
    text = re.sub(r'((?:src|href)=")([^"]+)(")', lambda m: m[1] + from_root(m[2]) + m[3], text)
    text = re.sub(
        r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.splitlines())
    ).strip()
    return (
        f"<!-- Rendered from nbs/index.ipynb by `make pages`: edit that page. -->\n\n{text}\n"
    )


def read_index(execute=False):
    "The index page as stored, or with its cells executed now."
    import nbformat

    nb = nbformat.read(index, as_version=4)
    if execute:
        from nbclient import NotebookClient

        NotebookClient(
            nb,
            timeout=300,
            kernel_name="python3",
            resources={"metadata": {"path": str(index.parent)}},
        ).execute()
    return nb


def dead_links(text):
    "Relative link targets of README.md that do not exist."
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    return sorted(
        {
            t
            for t in targets
            if not re.match(r"([a-z][a-z0-9+.-]*:|#)", t, re.I)
            and not (root / t.partition("#")[0]).exists()
        }
    )


def own_results():
    """Whether result files that the README shows differ from the commit.

    Then a run was made on this machine, which README.md need not follow.
    """
    run = subprocess.run(
        ["git", "status", "--porcelain", "--", *(f"figures/{p}" for p in shown_profiles)],
        cwd=root,
        capture_output=True,
        text=True,
    )
    return run.returncode != 0 or bool(run.stdout.strip())


def check_readme():
    "README.md is the stored index page, which is what the page gives when executed now."
    stored = (
        (root / "README.md").read_text(encoding="utf-8")
        if (root / "README.md").exists()
        else ""
    )
    faults, variants = [], [(False, "as stored")]
    if own_results():
        print(
            "figures/ holds results that are not committed, so the README's results are compared "
            "with the stored page only"
        )
    else:
        variants.append((True, "as executed now"))
    for execute, what in variants:
        expected = render(read_index(execute))
        if expected != stored:
            faults.append(
                f"README.md is not nbs/index.ipynb {what}\n"
                + difference(stored, expected, "README.md")
            )
    faults += [
        f"README.md links to {target}, which does not exist" for target in dead_links(stored)
    ]
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
    checks = {
        "modules": check_modules,
        "clean": check_clean,
        "readme": check_readme,
        "write-clean": write_clean,
        "write-readme": write_readme,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("check", choices=checks)
    faults, success = checks[parser.parse_args().check]()
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        sys.exit(
            "Mend it with `make pages`, which exports, cleans and renders from the notebooks."
        )
    print(success)


if __name__ == "__main__":
    main()
