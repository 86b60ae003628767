"""What a reader relies on: titles, equations under headings, names that exist, links that lead."""

import ast
import json
import re
from pathlib import Path

import nbstyle
import pytest
from pages import from_root, has_explorer, largest_notebook, notebooks, without_widgets

root = Path(__file__).resolve().parent.parent
pages = sorted((root / "nbs").glob("[0-9]*.ipynb"))
every = pytest.mark.parametrize("path", notebooks(), ids=lambda p: p.stem)


def cells(path, kind):
    "Sources of a notebook's cells of one kind."
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in found if c["cell_type"] == kind]


def markdown(path):
    return "\n\n".join(cells(path, "markdown"))


def equations(heading):
    "Numbers in a heading such as `Eq. 4–6` or `Eq. 12`."
    found = set()
    for first, last in re.findall(r"Eq\.\s*(\d+)(?:\s*[–-]\s*(\d+))?", heading):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def module(name):
    "The syntax tree of a module such as stage1.adaptor."
    file = root / "mfmda" / Path(*name.split(".")).with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def exported(name):
    "Names that a module exports, read without importing it."
    assigned = [node for node in module(name).body if isinstance(node, ast.Assign)]
    lists = [n.value for n in assigned if getattr(n.targets[0], "id", None) == "__all__"]
    return {name for value in lists for name in ast.literal_eval(value)}


@every
def test_page_opens_with_title_and_subtitle(path):
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    assert first["cell_type"] == "markdown"
    assert re.match(r"# \S.*\n+> \S", "".join(first["source"]))


def test_each_of_the_twelve_equations_has_a_heading():
    lines = [line for path in pages for line in markdown(path).splitlines()]
    headings = [line for line in lines if re.match(r"##+ ", line)]
    assert set().union(*map(equations, headings)) == set(range(1, 13))


# where each equation is a function, so that its number is found by one search of the package
HOMES = {
    1: "stage1.ddpm",
    2: "stage1.ddpm",
    **dict.fromkeys(range(3, 8), "stage1.adaptor"),
    8: "stage1.objective",
    9: "stage2.foundation",
    10: "stage2.foundation",
    11: "stage2.alignment",
    12: "stage2.tuning",
}


@pytest.mark.parametrize("number", HOMES)
def test_each_equation_is_a_function_of_at_most_fifteen_lines_that_names_it(number):
    functions = [n for n in ast.walk(module(HOMES[number])) if isinstance(n, ast.FunctionDef)]
    tagged = [f for f in functions if number in equations(ast.get_docstring(f) or "")]
    assert tagged, f"no docstring of {HOMES[number]} names Eq. {number}"
    lengths = {f.name: f.end_lineno - f.body[0].end_lineno for f in tagged}
    assert min(lengths.values()) <= 15, lengths


def test_index_maps_each_equation_to_names_that_exist():
    line = r"^\| ([^|]+) \|[^|]+\| \[([\w.]+)\]\((\S+)\) \| `([\w.]+)\.(\w+)` \|$"
    rows = re.findall(line, markdown(root / "nbs" / "index.ipynb"), re.M)
    found = set().union(*(equations(f"Eq. {number}") for number, *_ in rows))
    assert found == set(range(1, 13))
    wrong = [f"{home}.{name}" for *_, home, name in rows if name not in exported(home)]
    assert not wrong
    assert all(room == home for _, room, _, home, _ in rows)
    assert {link for _, _, link, *_ in rows} == {page.name for page in pages}


@every
def test_links_between_pages_lead_somewhere(path):
    links = re.findall(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)", markdown(path))
    local = {link.partition("#")[0] for link in links if not re.match(r"\w+:|#", link)}
    assert not {link for link in local if not (path.parent / link).exists()}


LINKS = [
    ("01_data.ipynb", "nbs/01_data.ipynb"),
    ("../figures/mini/fig1.png", "figures/mini/fig1.png"),
    ("https://a.b/c", "https://a.b/c"),
    ("#use", "#use"),
    ("02_x.ipynb#y", "nbs/02_x.ipynb#y"),
]


@pytest.mark.parametrize("target, expected", LINKS)
def test_readme_links_start_at_the_root(target, expected):
    assert from_root(target) == expected


def test_readme_is_read_in_one_go():
    lines = (root / "README.md").read_text(encoding="utf-8").splitlines()
    assert 40 <= len(lines) <= 150


def reading_minutes(path):
    "Two hundred words a minute, and a second for a line of code."
    lines = [line for source in cells(path, "code") for line in source.splitlines()]
    words = re.findall(r"\w+", markdown(path))
    return len(words) / 200 + len([line for line in lines if line.strip()]) / 60


NEIGHBOURS = (
    r"^\*Reading time: (\d+) minutes\.(?: Before: \[[^\]]+\]\((\S+)\)\.)?"
    r"(?: Next: \[[^\]]+\]\((\S+)\)\.| Back to the \[index\]\(index\.ipynb\)\.)\*$"
)


@pytest.mark.parametrize("path", pages, ids=lambda p: p.stem)
def test_page_names_its_reading_time_and_its_neighbours(path):
    at = pages.index(path)
    line = re.search(NEIGHBOURS, cells(path, "markdown")[0], re.M)
    assert line, "the first cell needs a line such as *Reading time: 5 minutes. Before: …*"
    assert line[2] == (pages[at - 1].name if at else None)
    assert line[3] == (pages[at + 1].name if at + 1 < len(pages) else None)
    minutes = reading_minutes(path)
    assert minutes / 2 <= int(line[1]) <= 2 * minutes + 1, f"about {minutes:.0f} minutes"


def explorers(nb):
    "Cells that put sliders above a figure."
    code = [c for c in nb["cells"] if c["cell_type"] == "code"]
    return [c for c in code if has_explorer(c)]


@every
def test_stored_page_is_small_and_shows_pictures_without_a_kernel(path):
    text = path.read_text(encoding="utf-8")
    nb = json.loads(text)
    assert len(text.encode()) <= largest_notebook
    outputs = [o for c in nb["cells"] for o in c.get("outputs", [])]
    kinds = [kind for o in outputs for kind in o.get("data", {})]
    assert "widgets" not in nb["metadata"] and not [k for k in kinds if "jupyter.widget" in k]
    for cell in explorers(nb):
        shown = [o for o in cell["outputs"] if "image/png" in o.get("data", {})]
        assert shown and all(o["metadata"]["image/png"]["alt"] for o in shown), (
            "execute the page"
        )


def test_some_pages_have_sliders():
    assert sum(bool(explorers(json.loads(p.read_text(encoding="utf-8")))) for p in pages) >= 7


def test_cleaning_keeps_a_widgets_picture_and_drops_a_progress_bar():
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
    bar = dict(output_type="display_data", metadata={}, data=view | {"text/plain": "bar"})
    picture = view | {"image/png": "iVBO", "text/plain": "alt"}
    shown = dict(output_type="execute_result", metadata={}, data=picture)
    said = dict(output_type="stream", name="stdout", text="kept")
    warned = dict(output_type="stream", name="stderr", text="training: 50%")
    code = dict(cell_type="code", outputs=[bar, shown, said, warned])
    metadata = dict(widgets={}, kernelspec={})
    nb = dict(metadata=metadata, cells=[dict(cell_type="markdown", source=""), code])
    without_widgets(nb)
    assert nb["metadata"] == dict(kernelspec={})
    kept = [sorted(o.get("data", [])) for o in nb["cells"][1]["outputs"]]
    assert kept == [["image/png", "text/plain"], []]


def test_wide_crowded_and_long_cells_are_found(tmp_path):
    sources = ["x = 1; y = 2", f"name = '{'w' * 130}'", "\n".join(["z = 3"] * 40)]
    code = [dict(cell_type="code", source=source) for source in sources]
    file = tmp_path / "dense.ipynb"
    file.write_text(json.dumps(dict(cells=code)))
    found = nbstyle.measure([file])
    missed = {name for name, most in nbstyle.GOALS.items() if found[name] > most}
    assert {"lines > 100, %", "lines > 120, %", "two statements in a line, %"} <= missed
    assert "lines in a code cell, 90 %" in missed
