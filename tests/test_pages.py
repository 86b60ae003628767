"""What a reader relies on in the pages: a title, every equation under its own heading, names that exist, links that lead somewhere."""
import ast
import json
import re
from pathlib import Path

import pytest
from pages import from_root, largest_notebook, notebooks, without_widgets

root = Path(__file__).resolve().parent.parent
pages = sorted((root / "nbs").glob("[0-9]*.ipynb"))


def markdown(path):
    return "\n\n".join("".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "markdown")


def equations(heading):
    "Numbers in a heading such as `Eq. 4–6` or `Eq. 12`."
    found = set()
    for first, last in re.findall(r"Eq\.\s*(\d+)(?:\s*[–-]\s*(\d+))?", heading):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def exported(module):
    "Names that a module exports, read without importing it."
    tree = ast.parse((root / "mfmda" / f"{module}.py").read_text(encoding="utf-8"))
    lists = [node.value for node in tree.body if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__"]
    return {name for value in lists for name in ast.literal_eval(value)}


@pytest.mark.parametrize("path", notebooks(), ids=lambda p: p.stem)
def test_page_opens_with_title_and_subtitle(path):
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    assert first["cell_type"] == "markdown" and re.match(r"# \S.*\n+> \S", "".join(first["source"]))


def test_each_of_the_twelve_equations_has_a_heading():
    headings = [line for path in pages for line in markdown(path).splitlines() if re.match(r"##+ ", line)]
    assert set().union(*map(equations, headings)) == set(range(1, 13))


def test_index_maps_each_equation_to_names_that_exist():
    rows = re.findall(r"^\| ([^|]+) \|[^|]+\| \[(\w+)\]\((\S+)\) \| `mfmda\.(\w+)(?:\.(\w+))?` \|$", markdown(root / "nbs" / "index.ipynb"), re.M)
    assert set().union(*(equations(f"Eq. {number}") for number, *_ in rows)) == set(range(1, 13))
    wrong = [f"mfmda.{module}.{name}" for *_, module, name in rows if name and name not in exported(module)]
    assert not wrong
    assert {page for _, page, *_ in rows} == {p.stem for p in pages} and all(link == f"{page}.ipynb" for _, page, link, *_ in rows)


@pytest.mark.parametrize("path", notebooks(), ids=lambda p: p.stem)
def test_links_between_pages_lead_somewhere(path):
    links = {link.partition("#")[0] for link in re.findall(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)", markdown(path)) if not re.match(r"\w+:|#", link)}
    assert not {link for link in links if not (path.parent / link).exists()}


@pytest.mark.parametrize("target, expected", [("01_data.ipynb", "nbs/01_data.ipynb"), ("../figures/mini/fig1.png", "figures/mini/fig1.png"),
                                              ("https://a.b/c", "https://a.b/c"), ("#use", "#use"), ("02_x.ipynb#y", "nbs/02_x.ipynb#y")])
def test_readme_links_start_at_the_root(target, expected):
    assert from_root(target) == expected


def reading_minutes(path):
    "Two hundred words a minute, and a second for a line of code."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    lines = [line for c in cells if c["cell_type"] == "code" for line in "".join(c["source"]).splitlines() if line.strip()]
    return len(re.findall(r"\w+", markdown(path))) / 200 + len(lines) / 60


@pytest.mark.parametrize("path", pages, ids=lambda p: p.stem)
def test_page_names_its_reading_time_and_its_neighbours(path):
    opening, at = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]), pages.index(path)
    line = re.search(r"^\*Reading time: (\d+) minutes\.(?: Before: \[[^\]]+\]\((\S+)\)\.)?(?: Next: \[[^\]]+\]\((\S+)\)\.| Back to the \[index\]\(index\.ipynb\)\.)\*$", opening, re.M)
    assert line, "the first cell needs a line such as *Reading time: 5 minutes. Before: [data](02_data.ipynb). Next: [encoders](04_encoders.ipynb).*"
    assert line[2] == (pages[at - 1].name if at else None) and line[3] == (pages[at + 1].name if at + 1 < len(pages) else None)
    assert reading_minutes(path) / 2 <= int(line[1]) <= 2 * reading_minutes(path) + 1, f"about {reading_minutes(path):.0f} minutes"


@pytest.mark.parametrize("path", notebooks(), ids=lambda p: p.stem)
def test_stored_page_is_small_and_shows_pictures_without_a_kernel(path):
    text = path.read_text(encoding="utf-8")
    nb = json.loads(text)
    assert len(text.encode()) <= largest_notebook
    assert "widgets" not in nb["metadata"] and not [mime for c in nb["cells"] for o in c.get("outputs", []) for mime in o.get("data", {}) if "jupyter.widget" in mime], "mend it with `make pages`"
    for cell in nb["cells"]:
        if cell["cell_type"] == "code" and re.search(r"^explorer = Explorer\(", "".join(cell["source"]), re.M):
            assert [o for o in cell["outputs"] if "image/png" in o.get("data", {}) and o["metadata"]["image/png"]["alt"]], "an Explorer whose first picture is not stored: execute the page"


def test_cleaning_keeps_a_widgets_picture_and_drops_a_progress_bar():
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
    outputs = [dict(output_type="display_data", metadata={}, data=view | {"text/plain": "bar"}), dict(output_type="execute_result", metadata={}, data=view | {"image/png": "iVBO", "text/plain": "alt"}),
               dict(output_type="stream", name="stdout", text="kept")]
    nb = dict(metadata=dict(widgets={}, kernelspec={}), cells=[dict(cell_type="markdown", source=""), dict(cell_type="code", outputs=outputs)])
    without_widgets(nb)
    assert nb["metadata"] == dict(kernelspec={}) and [sorted(o.get("data", [])) for o in nb["cells"][1]["outputs"]] == [["image/png", "text/plain"], []]
