"""How wide and how dense the pages' code is: `python tests/nbstyle.py [NOTEBOOK ...]`, default all.

Prints the figures and fails where a goal is missed.
"""

import argparse
import ast
import json
import re
import sys
from pathlib import Path
from statistics import quantiles

root = Path(__file__).resolve().parent.parent
GOALS = {  # figure -> the most that all pages together may have
    "columns, median": 45,
    "columns, 95 %": 95,
    "lines > 100, %": 0,
    "lines > 120, %": 0,
    "two statements in a line, %": 2,
    "lines in a code cell, median": 6,
    "lines in a code cell, 90 %": 20,
}


def notebooks():
    "Every notebook of the project, pages and experiments."
    found = sorted((root / "nbs").rglob("*.ipynb"))
    return [p for p in found if not any(part.startswith((".", "_")) for part in p.parts)]


def code_cells(path):
    "The sources of a notebook's code cells, without directives and blank lines at the ends."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    return [re.sub(r"^#\|.*\n?", "", s, flags=re.M).strip() for s in sources]


def crowded(source):
    "Line numbers on which more than one statement begins."
    tree = ast.parse(re.sub(r"^[%!].*$", "pass", source, flags=re.M))
    lines = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    return {line for line in lines if lines.count(line) > 1}


def percentile(values, percent):
    if len(values) < 2:  # noqa: PLR2004
        return sum(values)
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def measure(paths):
    "The figures of `GOALS` over all code cells of some notebooks."
    cells = [cell for path in paths for cell in code_cells(path) if cell]
    lines = [line for cell in cells for line in cell.splitlines() if line.strip()]
    widths = [len(line) for line in lines]
    heights = [len([line for line in cell.splitlines() if line.strip()]) for cell in cells]
    many = sum(len(crowded(cell)) for cell in cells)
    count = len(widths) or 1  # a page may have no code
    return {
        "columns, median": percentile(widths, 50),
        "columns, 95 %": percentile(widths, 95),
        "lines > 100, %": 100 * sum(w > 100 for w in widths) / count,
        "lines > 120, %": 100 * sum(w > 120 for w in widths) / count,
        "two statements in a line, %": 100 * many / count,
        "lines in a code cell, median": percentile(heights, 50),
        "lines in a code cell, 90 %": percentile(heights, 90),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    paths = parser.parse_args().notebooks or notebooks()
    assert paths, "no notebook was found"
    found = measure(paths)
    missed = [name for name, most in GOALS.items() if found[name] > most]
    for name, value in found.items():
        mark = "MISSED" if name in missed else "ok"
        print(f"{name:30} {value:6.1f}   goal {GOALS[name]:3}   {mark}")
    if missed:
        sys.exit(f"{len(paths)} notebooks miss: {', '.join(missed)}.")


if __name__ == "__main__":
    main()
