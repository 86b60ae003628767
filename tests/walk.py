"""A stranger's walk, typed from README.md: clone, demo, a folder of one's own, an adapted segmenter, its report. `python tests/walk.py` writes figures/walk.json.

Everything happens in an empty folder, with the commit that is checked out here and nothing else of this checkout.
"""
import csv
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

root = Path(__file__).resolve().parent.parent

# what a clinic has: photographs of another size than the network's, as JPEG; masks as PNG. Phantoms stand in for its patients
FOLDERS = """
from pathlib import Path
from PIL import Image
from mfmda.data import load_phantoms
for name, camera, first, count, masks in (("home", "phantom_a", 0, 150, True), ("clinic", "phantom_b", 5000, 10, False), ("photos", "phantom_b", 6000, 30, False), ("labelled", "phantom_b", 7000, 30, True)):
    eyes = load_phantoms(camera, 11, first, count, 160)
    for kind in ("images", *(["masks"] if masks else [])): (Path(name)/kind).mkdir(parents=True)
    for k, (x, m) in enumerate(zip(eyes.images, eyes.masks)):
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(Path(name)/"images"/f"eye {k:03d} OD.jpg", quality=95)
        if masks: Image.fromarray(m.numpy()).save(Path(name)/"masks"/f"eye {k:03d} OD.png")
"""


def typed(readme):
    "The commands of README that the walk types: `make demo`, and the lines of the shell block in \"Your own images\"."
    blocks = re.findall(r"```sh\n(.*?)```", readme, re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    demo = [line for line in lines if line == "make demo"]
    own = re.search(r"## Your own images.*?```sh\n(.*?)```", readme, re.S)
    found = demo + [line.split("#")[0].strip() for line in (own[1].splitlines() if own else []) if line.strip()]
    for command in ("make demo", ". .venv/bin/activate", "mfmda doctor", "mfmda adapt", "mfmda segment", "mfmda report", "mfmda evaluate"):
        assert any(line.startswith(command) for line in found), f"README.md no longer says {command!r} in a shell block; the walk cannot type it"
    return found


def lines_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check_demo(box):
    cells = json.loads((box / "demo-run" / "demo.ipynb").read_text(encoding="utf-8"))["cells"]
    assert any("adapted" in "".join(o.get("data", {}).get("text/plain", "")) for c in cells for o in c.get("outputs", [])), "the executed demo shows no table with 'adapted'"


def check_segment(box):
    rows, masks = lines_of(box / "masks" / "segmentation.csv"), list((box / "masks" / "masks").iterdir())
    assert len(rows) == len(masks) == 30, f"{len(rows)} lines and {len(masks)} masks for 30 photographs"
    assert sum(float(r["disc_area"]) > 0 for r in rows) >= 29, "discs were found in fewer than 29 of 30 photographs"


def check_report(box):
    page = (box / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") >= 24 and "eye 000 OD" in page and "src=\"http" not in page, "report.html lacks its pictures, names no photograph, or fetches something"


def check_evaluate(box):
    means = {r["score"]: float(r["mean"]) for r in lines_of(box / "scores" / "means.csv")}
    assert means["disc_dice"] > .8 and means["cup_dice"] > .5, f"disc and cup Dice {means['disc_dice']:.2f} and {means['cup_dice']:.2f}; expected more than .8 and .5"


CHECKS = {"make demo": check_demo, "mfmda segment": check_segment, "mfmda report": check_report, "mfmda evaluate": check_evaluate}


def walk(box):
    "Type everything in `box`; the list of steps with their seconds."
    from mfmda.config import read_json
    steps, environment = [], {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "OMP_NUM_THREADS", "MPLBACKEND")}
    environment["PATH"] = os.pathsep.join(p for p in environment["PATH"].split(os.pathsep) if p != str(root / ".venv" / "bin"))

    def step(what, command, run, check=None):
        print(f"== {what}: {command}", flush=True)
        start = time.perf_counter()
        done = subprocess.run(["bash", "-c", run], cwd=box, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        took = time.perf_counter() - start
        if done.returncode: sys.exit(f"walk: {what}: {command!r} ended with status {done.returncode}; its last words:\n{done.stdout[-2000:]}")
        if check:
            try: check(box)
            except (AssertionError, OSError, KeyError, ValueError) as e: sys.exit(f"walk: {what}: after {command!r}: {e}")
        made = re.search(r"== environment: passed in (\d+) s", done.stdout)
        if made: steps.append(dict(step="environment", command=f"{command}, its first part", seconds=float(made[1]))); took -= float(made[1])
        steps.append(dict(step=what, command=command, seconds=round(took, 1)))

    step("clone", "git clone", f"git clone -q {shlex.quote(str(root))} checkout && shopt -s dotglob && mv checkout/* . && rmdir checkout")
    try: commands = typed((box / "README.md").read_text(encoding="utf-8"))
    except AssertionError as e: sys.exit(f"walk: {e}")
    for line in commands:
        if line == ". .venv/bin/activate":
            step("a folder of one's own", "photographs and masks as JPEG and PNG", f"{line} && python -c {shlex.quote(FOLDERS)}"); continue
        name = line if line == "make demo" else " ".join(line.split()[:2])
        step({"make demo": "demo"}.get(name, name.split()[-1]), line, line if name == "make demo" else f". .venv/bin/activate && {line}", CHECKS.get(name))
    return dict(steps=steps, warnings=read_json(box / "run" / "segmenter" / "config.json")["facts"]["adaptation"]["warnings"], scores={r["score"]: float(r["mean"]) for r in lines_of(box / "scores" / "means.csv")})


def main():
    from mfmda.config import git_commit, versions, write_json
    with tempfile.TemporaryDirectory() as box:
        found = walk(Path(box))
    write_json(root / "figures" / "walk.json", found | dict(commit=git_commit(), versions=versions(), date=time.strftime("%Y-%m-%d"), cores=os.cpu_count()))
    print(f"walked in {sum(s['seconds'] for s in found['steps']):.0f} s: figures/walk.json")


if __name__ == "__main__":
    main()
