"""A stranger's walk, typed from README.md: clone, demo, a folder of one's own, an adapted
segmenter, its report.

`python tests/walk.py` writes figures/walk.json. Everything happens in an empty temporary folder,
with the commit that is checked out here and nothing else of this checkout;
`python tests/walk.py FOLDER` walks in that folder and keeps it, to be looked at.
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
ENTER = ". .venv/bin/activate"

# What a clinic has: square crops of other sizes than the network's as JPEG, masks as PNG, file
# names with numbers and spaces. Phantoms stand in for its patients.
FOLDERS = """
from pathlib import Path
from PIL import Image
from mfmda.data.sets import load_phantoms

def write(images, masks, camera, first, count, size):
    eyes = load_phantoms(camera, 11, first, count, size)
    for folder in (images, masks):
        if folder:
            Path(folder).mkdir(parents=True)
    for k in range(count):
        name = f"P{first + k:05} OD"
        picture = Image.fromarray(eyes.images[k].permute(1, 2, 0).numpy())
        picture.save(f"{images}/{name}.jpg", quality=95)
        if masks:
            Image.fromarray(eyes.masks[k].numpy()).save(f"{masks}/{name}.png")

write("home/images", "home/masks", "phantom_a", 0, 150, 160)
write("clinic/images", None, "phantom_b", 5000, 10, 224)
write("photos", None, "phantom_b", 6000, 20, 224)
write("labelled/images", "labelled/masks", "phantom_b", 7000, 30, 224)
"""

FACTS = """
import json, os
from mfmda.core.runtime import device_name, git_commit, package_versions, pick_device

def megabytes(folder):
    files = (os.path.join(at, name) for at, _, names in os.walk(folder) for name in names)
    return round(sum(os.lstat(file).st_size for file in files) / 1e6)

facts = dict(commit=git_commit(), versions=package_versions())
facts["device"], facts["cores"] = device_name(pick_device("auto")), os.cpu_count()
facts["megabytes"] = dict(environment=megabytes(".venv"), run=megabytes("run"))
print(json.dumps(facts))
"""


def shell_lines(text):
    "The commands of the shell blocks of a Markdown text, without their comments."
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def own_images(readme):
    'The section "Your own images" of README.'
    found = re.search(r"^## Your own images$(.*?)(?=^## |\Z)", readme, re.S | re.M)
    return found[1] if found else ""


def typed(readme):
    'The commands of README that the walk types: `make demo`, and those of "Your own images".'
    demo = [line for line in shell_lines(readme) if line == "make demo"]
    found = demo + shell_lines(own_images(readme))
    for command in ("make demo", ENTER, *(name for name in CHECKS if name != "make demo")):
        assert any(line.startswith(command) for line in found), (
            f"README.md no longer says {command!r} in a shell block; the walk cannot type it"
        )
    return found


def typed_python(readme):
    'The Python block of "Your own images".'
    blocks = re.findall(r"```python\n(.*?)```", own_images(readme), re.S)
    for block in blocks:
        if all(w in block for w in ("from mfmda import adapt", "adapt(", "segment_folder(")):
            return block
    raise AssertionError(
        "README.md no longer has adapt() and segment_folder() in a Python block under "
        "'Your own images'; the walk cannot run it"
    )


NOT_A_STRANGERS = re.compile(
    r"PYTHON(?!$)|VIRTUAL_ENV|MAKE|MFLAGS|GNUMAKEFLAGS|MFMDA_|OMP_|MPL|HF_|IPYTHON|JUPYTER|GIT_"
)


def strangers(environment):
    """The environment of somebody who has just opened a shell.

    No virtual environment, and nothing that a test or a make around this sets.
    """
    clean = {k: v for k, v in environment.items() if not NOT_A_STRANGERS.match(k)}
    folders = environment["PATH"].split(os.pathsep)
    outside = [p for p in folders if not (Path(p).parent / "pyvenv.cfg").exists()]
    return clean | dict(PATH=os.pathsep.join(outside))


def ids(folder):
    return sorted(p.stem for p in folder.iterdir())


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def scores(box):
    return {row["score"]: float(row["mean"]) for row in table(box / "scores" / "means.csv")}


def check_demo(box, said):
    page = json.loads((box / "demo-run" / "demo.ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in page["cells"] for output in cell.get("outputs", [])]
    shown = ["".join(o.get("data", {}).get("text/plain", "")) for o in outputs]
    found = re.search(r"^adapted +([\d.]+)", "\n".join(shown), re.M)
    assert found, "the executed demo-run/demo.ipynb has no table with a row 'adapted'"
    assert float(found[1]) > 0.8, f"disc Dice of the demo is {found[1]}; expected more than .8"


def check_doctor(box, said):
    healthy = "can run here" in said and "MISSING" not in said
    assert healthy, "doctor finds that something is missing"


def check_check(box, said):
    for told in ("home: 150 pictures found, 150 used, 150 with masks", "clinic: 10 pictures"):
        assert told in said, f"check does not say {told!r}"
    assert (box / "check.png").exists(), "check.png is missing"
    assert "cannot be used" not in said, "check refuses some of the folders"


def check_adapt(box, said):
    for name in ("run.json", "segmenter/config.json", "segmenter/README.md", "pairs/images"):
        assert (box / "run" / name).exists(), f"run/{name} is missing"
    made = len(ids(box / "run" / "pairs" / "images"))
    assert made > 100, (
        f"run/pairs holds {made} translated images of 150; expected more than 100"
    )
    assert foreseen(said), "it did not say first about how long it would take"


def foreseen(said):
    "Minutes that `mfmda adapt` says it will take."
    found = re.search(r"in all about (\d+) minutes", said)
    return found and int(found[1])


def check_segment(box, said):
    rows, photos = table(box / "masks" / "segmentation.csv"), ids(box / "photos")
    told, drawn = [row["image"] for row in rows], ids(box / "masks" / "masks")
    both = f"for {len(photos)} photographs, or other names"
    assert told == photos, f"masks/segmentation.csv has {len(told)} lines {both}"
    assert drawn == photos, f"masks/masks holds {len(drawn)} masks {both}"
    errors = [row["error"] for row in rows if row["error"]]
    assert not errors, errors[0]
    found = sum(float(row["disc_area"]) > 0 for row in rows)
    assert found >= len(photos) - 1, f"a disc was found in {found} of {len(photos)} photographs"


class Page(HTMLParser):
    "Pictures with what they are said to show, and everything that a page would fetch or run."

    def __init__(self, text):
        super().__init__()
        self.pictures = []
        self.fetched = re.findall(r"url\([^)]*\)|@import[^;]*", text)
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        if tag == "img" and a.get("src", "").startswith("data:image/"):
            self.pictures.append(a.get("alt", ""))
        elif tag in ("script", "link", "iframe", "object") or "src" in a:
            self.fetched.append(f"<{tag}>")


def check_report(box, said):
    page = Page((box / "report.html").read_text(encoding="utf-8"))
    for name in ids(box / "photos"):
        shown = any(words.startswith(f"{name}:") for words in page.pictures)
        assert shown, f"report.html has no picture of {name} among its {len(page.pictures)}"
    assert not page.fetched, f"report.html is not one self-contained file: {page.fetched[0]}"


def check_evaluate(box, said):
    told = [row["image"] for row in table(box / "scores" / "scores.csv")]
    labelled, mean = ids(box / "labelled" / "images"), scores(box)
    assert told == labelled, (
        f"scores/scores.csv has {len(told)} lines for {len(labelled)} labelled photographs, "
        "or other names"
    )
    disc, cup = mean["disc_dice"], mean["cup_dice"]
    assert disc > 0.8 and cup > 0.5, (
        f"disc and cup Dice {disc:.2f} and {cup:.2f}; expected more than .8 and .5"
    )


CHECKS = {
    "make demo": check_demo,
    "mfmda doctor": check_doctor,
    "mfmda check": check_check,
    "mfmda adapt": check_adapt,
    "mfmda segment": check_segment,
    "mfmda report": check_report,
    "mfmda evaluate": check_evaluate,
}


def fault_of(done, check, box):
    "One line about what is wrong with a command that has ended; None where nothing is."
    if done.returncode:
        lines = done.stdout.strip().splitlines() or ["it said nothing"]
        return f"ended with status {done.returncode}: {lines[-1]}"
    try:
        if check:
            check(box, done.stdout)
    except AssertionError as error:
        return " ".join(str(error).split())
    except (OSError, LookupError, ValueError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None


def type_in(box, step, command, run=None, check=None):
    """Run `run` (or `command`) in a stranger's shell: what it said, and its seconds.

    Ends the program with one line, under what was said last, if it fails or leaves too little.
    """
    print(f"== {step}: {command or 'by hand'}", flush=True)
    how = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    start, words = time.perf_counter(), ["bash", "-c", run or command]
    done = subprocess.run(words, cwd=box, env=strangers(os.environ), text=True, **how)
    took = time.perf_counter() - start
    if fault := fault_of(done, check, box):
        print(done.stdout[-4000:], flush=True)
        sys.exit(f"walk: step {step!r}: {command!r}: {fault}")
    return done.stdout, took


def worked():
    """Seconds until now: of the clock, of all cores at work, and of this program's children.

    None where the system does not tell.
    """
    if not Path("/proc/stat").exists():
        return None
    import resource

    ticks = map(int, Path("/proc/stat").read_text().split()[1:9])
    user, nice, system, _, _, irq, softirq, steal = ticks
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), busy, own.ru_utime + own.ru_stime


def others(before, after):
    "How many cores other programs kept busy between two answers of `worked`."
    if before is None:
        return None
    clock, cores, own = (b - a for a, b in zip(before, after))
    return round(max(0.0, cores - own) / clock, 1)


class Walk:
    "Commands that are typed in an empty folder, one after the other, and their seconds."

    def __init__(self, box):
        self.box, self.steps, self.minutes = box, [], None

    def step(self, name, command, run=None, check=None):
        "Type a command; making the environment, where it does that, is a step of its own."
        said, took = type_in(self.box, name, command, run, check)
        if made := re.search(r"== environment: passed in (\d+) s", said):
            self.note("environment, made first", command, float(made[1]))
            took -= float(made[1])
        self.note(name, command, round(took, 2))
        self.minutes = foreseen(said) or self.minutes
        return said

    def note(self, name, command, seconds):
        self.steps.append(dict(step=name, command=command, seconds=seconds))

    def inside(self, name, command, run=None, check=None):
        "Type a command in the environment."
        return self.step(name, command, f"{ENTER} && {run or command}", check)

    def line(self, command):
        "Type a line of README."
        if command == ENTER:
            self.inside("a folder of one's own", "", f"python -c {shlex.quote(FOLDERS)}")
        elif command == "make demo":
            self.step("demo", command, check=check_demo)
        else:
            program = " ".join(command.split()[:2])
            self.inside(program.split()[-1], command, check=CHECKS.get(program))

    def ask(self, name, run):
        "What a command says that is no step of the walk."
        return type_in(self.box, name, "", run)[0].strip()


def walk(box):
    "Type everything in the empty folder `box`; the steps, and what came of them."
    stranger, begun = Walk(box), worked()
    stranger.step("clone", "git clone", f"git clone -q {shlex.quote(str(root))} .")
    readme = (box / "README.md").read_text(encoding="utf-8")
    try:
        commands, block = typed(readme), typed_python(readme)
    except AssertionError as error:
        sys.exit(f"walk: step 'read README.md': {error}")
    for command in commands:
        stranger.line(command)
    again = f"python -c {shlex.quote(block)}"
    stranger.inside("the Python block, from what is kept", "python", again, check_segment)
    if offered := stranger.ask("git status", "git status --porcelain"):
        sys.exit(
            "walk: step 'git status': git would take a stranger's files, such as "
            f"{offered.splitlines()[0]!r}; .gitignore should name them"
        )
    asked = stranger.ask("what was installed", f"{ENTER} && python -c {shlex.quote(FACTS)}")
    config = json.loads((box / "run" / "segmenter" / "config.json").read_text(encoding="utf-8"))
    found = dict(
        steps=stranger.steps,
        foreseen_minutes=stranger.minutes,
        warnings=config["facts"]["adaptation"]["warnings"],
        labelled=len(ids(box / "labelled" / "images")),
        scores=scores(box),
        others=others(begun, worked()),
    )
    return found | json.loads(asked.splitlines()[-1])


def main():
    from mfmda.core.files import write_json

    if len(sys.argv) > 1:
        box = Path(sys.argv[1]).resolve()
        if box.exists() and any(box.iterdir()):
            sys.exit(f"walk: {box} is not empty; name an empty or a new folder.")
        box.mkdir(parents=True, exist_ok=True)
        found = walk(box)
    else:
        with tempfile.TemporaryDirectory() as box:
            found = walk(Path(box))
    write_json(root / "figures" / "walk.json", found | dict(date=time.strftime("%Y-%m-%d")))
    print(f"walked in {sum(s['seconds'] for s in found['steps']):.0f} s: figures/walk.json")


if __name__ == "__main__":
    main()
