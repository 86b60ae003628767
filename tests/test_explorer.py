"""The pages' `Explorer` without a browser: it draws again, keeps a picture, and shows errors."""

import base64
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from matplotlib.figure import Figure
from nbclient import NotebookClient

pages = Path(__file__).resolve().parent.parent / "nbs"
sys.path.insert(0, str(pages))

from explorer import Explorer  # noqa: E402

moved_to_an_error = """
from explorer import Explorer
from matplotlib.figure import Figure

def inverse(x=1):
    fig = Figure()
    fig.text(0.5, 0.5, str(1 / x))
    return fig

explorer = Explorer(inverse, "1/x", x=(0, 2))
first = explorer.picture.value
explorer.controls["x"].value = 0
print("as before" if explorer.picture.value == first else "changed")
"""


def scatter(seed=0, count=40, mark="o"):
    "Random points of one seed."
    fig = Figure(figsize=(3.2, 1.8))
    fig.subplots().plot(*np.random.default_rng(seed).random((count, 2)).T, mark)
    return fig


@pytest.fixture
def explorer():
    return Explorer(scatter, "Forty points", seed=(0, 9), count=(10, 200, 10), mark=["o", "x"])


def test_the_picture_is_drawn_again_at_other_values(explorer):
    first = explorer.picture.value
    for name, other in dict(seed=1, count=50, mark="x").items():
        start = explorer.controls[name].value
        explorer.controls[name].value = other
        assert explorer.picture.value != first
        explorer.controls[name].value = start
        assert explorer.picture.value == first


def test_a_page_keeps_the_first_picture_and_its_words(explorer):
    first = explorer.picture.value
    explorer.controls["seed"].value = 1
    bundle, beside = explorer._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]) == first
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert beside["image/png"]["alt"] == bundle["text/plain"] == "Forty points"


def test_controls_are_named_as_their_arguments(explorer):
    assert [c.description for c in explorer.controls.values()] == ["seed", "count", "mark"]


def test_an_error_is_shown_under_the_picture():
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(moved_to_an_error)])
    NotebookClient(nb, timeout=120, resources=dict(metadata=dict(path=str(pages)))).execute()
    widgets = nb.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values()
    (errors,) = [w["state"]["outputs"] for w in widgets if w["model_name"] == "OutputModel"]
    assert "ZeroDivisionError" in str(errors)
    assert nb.cells[0].outputs[0].text == "as before\n"
