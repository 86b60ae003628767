"""A stranger's walk, typed from README.md: clone, demo, a folder of one's own, an adapted segmenter, its report.

`python tests/walk.py` writes figures/walk.json. Everything happens in an empty temporary folder, with the commit that is checked
out here and nothing else of this checkout; `python tests/walk.py FOLDER` walks in that folder and keeps it, to be looked at.
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
from html.parser import HTMLParser
from pathlib import Path

root = Path(__file__).resolve().parent.parent

# what a clinic has: square crops of other sizes than the network's as JPEG, masks as PNG, file names with numbers and spaces. Phantoms stand in for its patients
FOLDERS = """
from pathlib import Path
from PIL import Image
from mfmda.data import load_phantoms
for name, camera, first, count, size, masks in (("home", "phantom_a", 0, 150, 160, True), ("clinic", "phantom_b", 5000, 10, 224, False), ("photos", "phantom_b", 6000, 20, 224, False), ("labelled", "phantom_b", 7000, 30, 224, True)):
    eyes, images = load_phantoms(camera, 11, first, count, size), Path(name) if name == "photos" else Path(name)/"images"
    for folder in (images, *([Path(name)/"masks"] if masks else [])): folder.mkdir(parents=True)
    for k, (x, m) in enumerate(zip(eyes.images, eyes.masks)):
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(images/f"P{first + k:05} OD.jpg", quality=95)
        if masks: Image.fromarray(m.numpy()).save(Path(name)/"masks"/f"P{first + k:05} OD.png")
"""

FACTS = """
import json, os
from mfmda.config import device_name, git_commit, pick_device, versions
size = lambda folder: round(sum(os.lstat(os.path.join(at, f)).st_size for at, _, files in os.walk(folder) for f in files) / 1e6)
print(json.dumps(dict(commit=git_commit(), versions=versions(), device=device_name(pick_device("auto")), cores=os.cpu_count(), megabytes=dict(environment=size(".venv"), run=size("run")))))
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


def typed_python(readme):
    "The Python block of \"Your own images\"."
    own = re.search(r"## Your own images((?:(?!\n## ).)*?)```python\n(.*?)```", readme, re.S)
    assert own and "adapt(" in own[2] and "segment_folder(" in own[2], "README.md no longer has adapt() and segment_folder() in a Python block under 'Your own images'; the walk cannot run it"
    return own[2]


def strangers(environment):
    "The environment variables of somebody who has just opened a shell: no virtual environment, nothing that a test or a make around this sets."
    clean = {k: v for k, v in environment.items() if not re.match(r"(PYTHON(?!$)|VIRTUAL_ENV|MAKE|MFLAGS|GNUMAKEFLAGS|MFMDA_|OMP_|MPL|HF_|IPYTHON|JUPYTER|GIT_)", k)}
    clean["PATH"] = os.pathsep.join(p for p in environment["PATH"].split(os.pathsep) if not (Path(p).parent / "pyvenv.cfg").exists())
    return clean


def ids(folder):
    return sorted(p.stem for p in folder.iterdir())


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check_demo(box, said):
    cells = json.loads((box / "demo-run" / "demo.ipynb").read_text(encoding="utf-8"))["cells"]
    shown = ["".join(o.get("data", {}).get("text/plain", "")) for c in cells for o in c.get("outputs", [])]
    found = [float(m[1]) for s in shown if (m := re.search(r"^adapted +([\d.]+)", s, re.M))]
    assert found and found[0] > .8, f"the executed demo-run/demo.ipynb should end with a disc Dice over .8 for 'adapted'; it has {found or 'no such table'}"


def check_doctor(box, said):
    assert "can run here" in said and "MISSING" not in said, "doctor finds that something is missing"


def check_adapt(box, said):
    for name in ("run.json", "segmenter/config.json", "segmenter/README.md", "pairs/images"):
        assert (box / "run" / name).exists(), f"run/{name} is missing"
    assert len(ids(box / "run" / "pairs" / "images")) > 100, "run/pairs holds fewer than 100 translated images of 150"
    assert foreseen(said), "it did not say first about how long it would take"


def foreseen(said):
    "Minutes that `mfmda adapt` says it will take."
    found = re.search(r"in all about (\d+) minutes", said)
    return found and int(found[1])


def check_segment(box, said):
    rows, photos = table(box / "masks" / "segmentation.csv"), ids(box / "photos")
    assert [r["image"] for r in rows] == photos, f"masks/segmentation.csv has {len(rows)} lines for {len(photos)} photographs, or other names"
    assert ids(box / "masks" / "masks") == photos, f"masks/masks holds {len(ids(box / 'masks' / 'masks'))} masks for {len(photos)} photographs, or other names"
    found = sum(float(r["disc_area"]) > 0 for r in rows)
    assert found >= len(photos) - 1 and not any(r["error"] for r in rows), f"a disc was found in {found} of {len(photos)} photographs; expected all but one at most, and no error"


class Page(HTMLParser):
    "Pictures with what they are said to show, and everything that a page would fetch or run."
    def __init__(self, text):
        super().__init__()
        self.pictures, self.fetched = [], re.findall(r"url\([^)]*\)|@import[^;]*", text)
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        if tag == "img" and a.get("src", "").startswith("data:image/"):
            self.pictures.append(a.get("alt", ""))
        elif tag in ("script", "link", "iframe", "object") or "src" in a:
            self.fetched.append(f"<{tag}>")


def check_report(box, said):
    page, photos = Page((box / "report.html").read_text(encoding="utf-8")), ids(box / "photos")
    lost = [name for name in photos if not any(words.startswith(f"{name}:") for words in page.pictures)]
    assert not lost, f"report.html has no picture of {', '.join(lost[:3])}; it has {len(page.pictures)} pictures for {len(photos)} photographs"
    assert not page.fetched, f"report.html is not one self-contained file: {page.fetched[0]}"


def check_evaluate(box, said):
    rows, means = table(box / "scores" / "scores.csv"), scores(box)
    assert [r["image"] for r in rows] == ids(box / "labelled" / "images"), f"scores/scores.csv has {len(rows)} lines for {len(ids(box / 'labelled' / 'images'))} labelled photographs, or other names"
    assert means["disc_dice"] > .8 and means["cup_dice"] > .5, f"disc and cup Dice {means['disc_dice']:.2f} and {means['cup_dice']:.2f}; expected more than .8 and .5"


def scores(box):
    return {r["score"]: float(r["mean"]) for r in table(box / "scores" / "means.csv")}


CHECKS = {"make demo": check_demo, "mfmda doctor": check_doctor, "mfmda adapt": check_adapt, "mfmda segment": check_segment, "mfmda report": check_report, "mfmda evaluate": check_evaluate}


def type_in(box, step, command, run=None, check=None):
    "Run `run` (or `command`) in a stranger's shell: what it said, and its seconds. Ends the program with one line, under what was said last, if it fails or leaves too little behind."
    print(f"== {step}: {command or 'by hand'}", flush=True)
    start = time.perf_counter()
    done = subprocess.run(["bash", "-c", run or command], cwd=box, env=strangers(os.environ), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    took, fault = time.perf_counter() - start, None
    if done.returncode:
        fault = f"ended with status {done.returncode}: {(done.stdout.strip().splitlines() or ['it said nothing'])[-1]}"
    elif check:
        try: check(box, done.stdout)
        except (AssertionError, OSError, LookupError, ValueError) as e: fault = " ".join(f"{type(e).__name__ + ': ' if not isinstance(e, AssertionError) else ''}{e}".split())
    if fault:
        print(done.stdout[-4000:], flush=True)
        sys.exit(f"walk: step {step!r}: {command!r}: {fault}")
    return done.stdout, took


def worked():
    "Seconds until now: of the clock, of all cores at work, and of this program's children; None where the system does not tell."
    if not Path("/proc/stat").exists(): return None
    import resource
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK"), own.ru_utime + own.ru_stime


def others(before, after):
    "How many cores other programs kept busy between two answers of `worked`: what makes one walk slower than another."
    if before is None: return None
    clock, cores, own = (b - a for a, b in zip(before, after))
    return round(max(0., cores - own) / clock, 1)


def walk(box):
    "Type everything in the empty folder `box`; the list of steps with their seconds, and what came of them."
    steps, inside, begun = [], ". .venv/bin/activate && ", worked()

    def step(what, command, run=None, check=None):
        said, took = type_in(box, what, command, run, check)
        if made := re.search(r"== environment: passed in (\d+) s", said):
            steps.append(dict(step="environment, made first", command=command, seconds=float(made[1])))
            took -= float(made[1])
        steps.append(dict(step=what, command=command, seconds=round(took, 2)))
        return said

    step("clone", "git clone", f"git clone -q {shlex.quote(str(root))} .")
    readme = (box / "README.md").read_text(encoding="utf-8")
    try: commands, block = typed(readme), typed_python(readme)
    except AssertionError as e: sys.exit(f"walk: step 'read README.md': {e}")
    minutes = None
    for line in commands:
        if line == ". .venv/bin/activate":
            step("a folder of one's own", "", f"{line} && python -c {shlex.quote(FOLDERS)}")
            continue
        name = line if line == "make demo" else " ".join(line.split()[:2])
        said = step({"make demo": "demo"}.get(name, name.split()[-1]), line, line if name == "make demo" else inside + line, CHECKS.get(name))
        minutes = foreseen(said) or minutes
    step("the Python block, from what is kept", "python", f"{inside}python -c {shlex.quote(block)}", check_segment)
    offered = type_in(box, "git status", "git status --porcelain")[0].strip()
    if offered: sys.exit(f"walk: step 'git status': 'git status --porcelain': git would take a stranger's files, such as {offered.splitlines()[0]!r}; .gitignore should name them")
    facts = json.loads(type_in(box, "what was installed", "", f"{inside}python -c {shlex.quote(FACTS)}")[0].splitlines()[-1])
    warnings = json.loads((box / "run" / "segmenter" / "config.json").read_text(encoding="utf-8"))["facts"]["adaptation"]["warnings"]
    return dict(steps=steps, foreseen_minutes=minutes, warnings=warnings, labelled=len(ids(box / "labelled" / "images")), scores=scores(box), others=others(begun, worked())) | facts


def main():
    from mfmda.config import write_json
    if len(sys.argv) > 1:
        box = Path(sys.argv[1]).resolve()
        if box.exists() and any(box.iterdir()): sys.exit(f"walk: {box} is not empty; name an empty or a new folder.")
        box.mkdir(parents=True, exist_ok=True)
        found = walk(box)
    else:
        with tempfile.TemporaryDirectory() as box:
            found = walk(Path(box))
    write_json(root / "figures" / "walk.json", found | dict(date=time.strftime("%Y-%m-%d")))
    print(f"walked in {sum(s['seconds'] for s in found['steps']):.0f} s: figures/walk.json")


if __name__ == "__main__":
    main()
