"""The demos run as a stranger would run them, in a folder of their own: what they print, write and
claim."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
from PIL import Image

from mfmda.data.sets import load_phantoms

root = Path(__file__).resolve().parents[1]


def run_page(name, where, **parameters):
    "Execute a page with papermill in the folder `where`; the outputs of its cells."
    page = root / "nbs" / f"{name}.ipynb"
    command = [sys.executable, "-m", "papermill", page, "out.ipynb", "--kernel", "python3"]
    for key, value in parameters.items():
        command += ["-p", key, value]
    env = os.environ | dict(PYTHONPATH=str(root))
    run = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    cells = json.loads((where / "out.ipynb").read_text(encoding="utf-8"))["cells"]
    return [output for cell in cells for output in cell.get("outputs", [])]


def printed(outputs):
    return "".join("".join(o["text"]) for o in outputs if o["output_type"] == "stream")


def shown_table(outputs, row):
    "The table among outputs that has a row of this name, as pandas prints it."
    texts = ["".join(output.get("data", {}).get("text/plain", "")) for output in outputs]
    (text,) = [text for text in texts if f"\n{row} " in text]
    return pd.read_csv(io.StringIO(text), sep=r"\s{2,}", engine="python", index_col=0)


def test_demo_runs_and_answers_for_a_picture_of_ones_own(tmp_path):
    "Minutes, a segmenter that is better on the new camera, and an answer for one's own picture."
    eye = load_phantoms("random_6", 3, 0, 1, 128).images[0]
    Image.fromarray(eye.permute(1, 2, 0).numpy()).save(tmp_path / "mine.png")
    start = time.monotonic()
    outputs = run_page("demo_colab", tmp_path, photo="mine.png", folder="kept")
    assert time.monotonic() - start < 900  # a loaded machine may take longer than the page says

    said = printed(outputs)
    assert "mine.png: vertical cup-to-disc ratio" in said and "s in all" in said
    scores = shown_table(outputs, "adapted")
    assert scores.disc_dice["adapted"] > 0.8
    both = scores.disc_dice + scores.cup_dice
    assert both["adapted"] > both["source alone"]
    translated = tmp_path / "kept" / "translated" / "images"
    assert [p.name for p in translated.iterdir()] == ["own.png"]


def test_another_task_is_adapted_as_the_vessels_page_says(tmp_path):
    "The page itself asserts that vessels are found better; its table names vessels, and no disc."
    run_page("demo_vessels", tmp_path, folder="kept")
    table = (tmp_path / "kept" / "masks" / "segmentation.csv").read_text(encoding="utf-8")
    header, *rows = table.splitlines()
    assert header == "image,vessel_area,confidence,far,distance,error" and len(rows) == 10
