"""What belongs to a user stays, one bad file is one line, steps run under this Python, means hide
nothing, and nothing leaves a command but one line and an exit status."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_practitioner import model, picture_of, read_table, type_in, write_eyes  # noqa: F401
from test_steps import clone  # noqa: F401

from mfmda.core.files import WRITTEN, InputError, atomic_path, outputs, written_in
from mfmda.data.readers import Task
from mfmda.data.sets import load_phantoms
from mfmda.stage2.segmenter import Segmenter
from mfmda.study.plan import own_kernel, run_step
from mfmda.use import cli, folders
from mfmda.use.cli import REFUSED, SOME_FAILED, UNFORESEEN, main

root = Path(__file__).resolve().parents[1]
SIZE = 16


def everything_in(folder):
    "Each file below a folder, with what is in it."
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write_photos(folder, n=3, first=0):
    "A plain folder of square photographs."
    folder.mkdir(parents=True)
    eyes = load_phantoms("phantom_a", 1, first, n, 32)
    for k, name in enumerate(eyes.ids):
        picture_of(eyes, k).save(folder / f"{name}.png")
    return folder


def write_labels(folder, name="months_of_work"):
    "A user's own mask."
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("L", (32, 32), 1).save(folder / f"{name}.png")
    return folder


# a user's file or folder that is in the way -> the options with which it would be lost


def labels_beside_the_images(box):
    write_labels(box / "photos" / "masks")
    (box / "photos" / "images").mkdir()
    for file in box.glob("photos/*.png"):
        file.rename(box / "photos" / "images" / file.name)
    return "segment", dict(images=box / "photos", out=box / "photos")


def labels_of_another_folder(box):
    write_labels(box / "lab" / "masks")
    return "segment", dict(images=box / "photos", out=box / "lab")


def labels_behind_a_link(box):
    write_labels(box / "lab")
    (box / "out").mkdir()
    (box / "out" / "masks").symlink_to(box / "lab", target_is_directory=True)
    return "segment", dict(images=box / "photos", out=box / "out")


def results_among_the_photographs(box):
    return "segment", dict(images=box / "photos", out=box / "photos" / "results")


def photographs_of_the_clinic(box):
    write_labels(box / "clinic" / "images", "a_patient")
    return "translate", dict(images=box / "photos", out=box / "clinic")


def scores_of_another_study(box):
    write_eyes(box / "labelled", 2, 32)
    (box / "scores").mkdir()
    (box / "scores" / "scores.csv").write_text("mine")
    return "evaluate", dict(images=box / "labelled", out=box / "scores")


def a_letter(box):
    (box / "letter.html").write_text("Dear colleague")
    return "report", dict(images=box / "photos", out=box / "letter.html")


def a_report_among_the_photographs(box):
    return "report", dict(images=box / "photos", out=box / "photos" / "report.html")


def another_network(box):
    (box / "network.onnx").write_bytes(b"weights")
    return "export", dict(out=box / "network.onnx")


def another_estimate(box):
    (box / "times.json").write_text("{}")
    return "estimate", dict(profile="smoke", out=box / "times.json")


def a_folder_of_notes(box):
    write_eyes(box / "labelled", 4, 32)
    (box / "notes").mkdir()
    (box / "notes" / "thesis.txt").write_text("years")
    return "adapt", dict(source=box / "labelled", target=box / "photos", out=box / "notes")


IN_THE_WAY = [
    labels_beside_the_images,
    labels_of_another_folder,
    labels_behind_a_link,
    results_among_the_photographs,
    photographs_of_the_clinic,
    scores_of_another_study,
    a_letter,
    a_report_among_the_photographs,
    another_network,
    another_estimate,
    a_folder_of_notes,
]


def fails(*_, **__):
    raise AssertionError("work began")


@pytest.mark.parametrize("in_the_way", IN_THE_WAY)
def test_nothing_of_a_users_is_replaced(model, tmp_path, capsys, monkeypatch, in_the_way):  # noqa: F811
    "Refused in one line that names it, before any work, and not a byte is changed."
    write_photos(tmp_path / "photos")
    command, options = in_the_way(tmp_path)
    if command in ("segment", "evaluate", "report", "export"):
        options["model"] = model
    if command == "translate":
        options["run"] = tmp_path
        run = SimpleNamespace(profile=SimpleNamespace(size=32), segmenter=Segmenter(net()))
        monkeypatch.setattr(folders, "open_run", lambda _: run)
    for name in ("segment_with_flips", "translate_batch", "score_prediction"):
        monkeypatch.setattr(folders, name, fails, raising=False)
    monkeypatch.setattr("mfmda.study.costs.measure", fails)
    before = everything_in(tmp_path)
    assert type_in(command, **options) == REFUSED
    error = capsys.readouterr().err
    assert str(options["out"]) in error and "give " in error and error.count("\n") == 1
    assert everything_in(tmp_path) == before


def net(channels=2):
    return torch.nn.Conv2d(3, channels, 1)


def test_a_mask_that_was_corrected_by_hand_stays(model, tmp_path, capsys):  # noqa: F811
    "It was mfmda's; since somebody changed it, it is theirs."
    photos, out = write_photos(tmp_path / "photos"), tmp_path / "out"
    assert type_in("segment", model=model, images=photos, out=out) == 0
    assert type_in("segment", model=model, images=photos, out=out) == 0
    corrected = min((out / "masks").iterdir())
    Image.new("L", (32, 32), 2).save(corrected)
    before = everything_in(out)
    assert type_in("segment", model=model, images=photos, out=out) == REFUSED
    assert corrected.name in capsys.readouterr().err and everything_in(out) == before
    corrected.unlink()
    assert type_in("segment", model=model, images=photos, out=out) == 0
    assert len(list((out / "masks").iterdir())) == 3


def test_the_same_call_can_be_made_again(model, tmp_path, monkeypatch):  # noqa: F811
    "Also where its results bear the name of a folder of labels, beside the photographs."
    write_photos(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert type_in("segment", model=model, images="images", out="masks") == 0
        assert type_in("report", model=model, images="images", out="report.html") == 0
    assert len(list((tmp_path / "masks" / "masks").iterdir())) == 3


def test_nothing_of_an_earlier_call_is_left(model, tmp_path):  # noqa: F811
    "Masks of other photographs, of which there were more, and of a file that is damaged now."
    out = tmp_path / "out"
    many, few = write_photos(tmp_path / "many", 4), write_photos(tmp_path / "few", 2, 9)
    for photos in (many, few):
        assert type_in("segment", model=model, images=photos, out=out) == 0
        names = {p.name for p in photos.iterdir()}
        assert {p.name for p in (out / "masks").iterdir()} == names
        assert set(written_in(out)) == {"segmentation.csv", *(f"masks/{n}" for n in names)}
    damaged = min(few.iterdir())
    damaged.write_bytes(damaged.read_bytes()[:60])
    assert type_in("segment", model=model, images=few, out=out) == SOME_FAILED
    assert {p.name for p in (out / "masks").iterdir()} == names - {damaged.name}


def test_a_call_that_fails_leaves_the_earlier_results(model, tmp_path, monkeypatch):  # noqa: F811
    "Whole, and without rubbish beside them."
    photos, out = write_photos(tmp_path / "photos"), tmp_path / "out"
    assert type_in("segment", model=model, images=photos, out=out) == 0
    before = everything_in(tmp_path)
    monkeypatch.setattr(folders, "segment_with_flips", fails)
    assert type_in("segment", model=model, images=photos, out=out) == UNFORESEEN
    assert everything_in(tmp_path) == before
    assert {p.name for p in out.iterdir()} == {"masks", "segmentation.csv", WRITTEN}


def test_two_commands_never_fill_one_folder(tmp_path):
    "A second command beside the first one's masks is refused; a single file may stand there."
    with outputs(tmp_path, "translate", ["masks/b.png"]) as folder:
        (folder / "masks").mkdir()
        (folder / "masks" / "b.png").touch()
    second = outputs(tmp_path, "segment", ["masks/a.png"])
    with pytest.raises(InputError, match="b.png: not what `mfmda segment`"), second:
        pass
    with outputs(tmp_path, "report", ["report.html"], alone=False) as folder:
        (folder / "report.html").touch()
    assert set(written_in(tmp_path)) == {"masks/b.png", "report.html"}


# row 13: names and files of every kind

NOT_UTF8 = os.fsdecode(b"g\xfcnther.png")
LONG = "x" * 244 + ".png"


def write_odd_names(folder):
    "One eye under odd names, and what is no photograph at all; the names that cannot be used."
    eyes = load_phantoms("phantom_a", 1, 0, 1, 32)
    for name in (LONG, NOT_UTF8, "two\nlines.png", "kein Leerzeichen\u202f!.png", "good.png"):
        try:
            picture_of(eyes, 0).save(folder / name)
        except OSError:
            pytest.skip("this file system takes no such names")
    (folder / "album.png").mkdir()
    (folder / "gone.png").symlink_to(folder / "nowhere")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:50])
    return {r"g\udcfcnther", r"two\nlines", "gone", "cut"}


@pytest.mark.parametrize("command", ["segment", "report", "translate"])
def test_one_bad_file_is_one_line(model, tmp_path, capsys, monkeypatch, command):  # noqa: F811
    "The others are finished, whatever their names, and the exit status says that some failed."
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    bad = write_odd_names(photos)
    options = dict(model=model, images=photos, out=out)
    if command == "report":
        options["out"] = out / "report.html"
    if command == "translate":
        small = SimpleNamespace(profile=SimpleNamespace(size=SIZE), segmenter=Segmenter(net()))
        monkeypatch.setattr(folders, "open_run", lambda _: small)
        monkeypatch.setattr(folders, "translate_batch", untranslated)
        options = dict(run=tmp_path, images=photos, out=out)
    assert type_in(command, **options) == SOME_FAILED
    error = capsys.readouterr().err
    assert error.count("\n") == len(bad) and "Traceback" not in error
    if command == "report":
        page = (out / "report.html").read_text(encoding="utf-8")
        assert all(name in page for name in bad)
        return
    table = dict(segment="segmentation.csv", translate="translation.csv")[command]
    rows = read_table(out / table)
    assert {name for name, row in rows.items() if row["error"]} == bad and len(rows) == 7
    kind = dict(segment="masks", translate="images")[command]
    made = {p.stem for p in (out / kind).iterdir()}
    assert made == set(rows) - bad and LONG[:-4] in made


def untranslated(done, photographs, seed):
    images = [(p.image.permute(1, 2, 0) * 255).byte().numpy() for p in photographs]
    return images, torch.zeros(len(images), SIZE, SIZE)


def test_bad_files_among_labelled_ones(model, tmp_path, capsys):  # noqa: F811
    "Evaluation finishes too."
    folder, out = write_eyes(tmp_path / "labelled", 3), tmp_path / "scores"
    for kind in ("images", "masks"):
        file = min((folder / kind).iterdir())
        try:
            file.rename(folder / kind / NOT_UTF8)
        except OSError:
            pytest.skip("this file system takes no such names")
    assert type_in("evaluate", model=model, images=folder, out=out) == SOME_FAILED
    rows = read_table(out / "scores.csv")
    assert [name for name, row in rows.items() if row["error"]] == [r"g\udcfcnther"]
    assert "rename it" in capsys.readouterr().err


def test_a_name_that_only_the_output_cannot_have(model, tmp_path, monkeypatch):  # noqa: F811
    "Another file system may take shorter names: one line, and no traceback."
    photos, out = write_photos(tmp_path / "photos"), tmp_path / "out"
    first = min(photos.iterdir()).stem
    save = Image.Image.save

    def picky(self, path, *args, **options):
        if first in str(path):
            raise OSError(36, "File name too long")
        save(self, path, *args, **options)

    monkeypatch.setattr(Image.Image, "save", picky)
    assert type_in("segment", model=model, images=photos, out=out) == SOME_FAILED
    rows = read_table(out / "segmentation.csv")
    assert "give it another name" in rows[first]["error"] and len(rows) == 3


# row 14: the interpreter of the steps


def toy(folder):
    "A notebook that says which Python it runs under."
    cells = [
        dict(cell_type="code", source="x = 1", metadata=dict(tags=["parameters"])),
        dict(cell_type="code", source="import sys, mfmda; sys.executable", metadata={}),
    ]
    for cell in cells:
        cell |= dict(outputs=[], execution_count=None)
    kernel = dict(name="python3", language="python", display_name="Python 3")
    page = dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=4)
    file = folder / "toy.ipynb"
    file.write_text(json.dumps(page), encoding="utf-8")
    return file


def other_python(folder):
    return json.dumps(dict(argv=["/usr/bin/false"], display_name="x", language="python"))


def damaged_kernel(folder):
    return "{"


def kernel_of_another_language(folder):
    return json.dumps(dict(argv=["R", "{connection_file}"], display_name="R", language="R"))


@pytest.mark.parametrize("kernel", [other_python, damaged_kernel, kernel_of_another_language])
@pytest.mark.parametrize("where", ["JUPYTER_PATH", "JUPYTER_DATA_DIR"])
def test_steps_run_under_this_python(tmp_path, monkeypatch, kernel, where):
    "A user's own kernel of the name python3 is not asked."
    folder = tmp_path / "kernels" / "python3"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(kernel(folder))
    monkeypatch.setenv(where, str(tmp_path))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    run_step("toy", tmp_path / "done.ipynb", toy(tmp_path), x=2)
    cells = json.loads((tmp_path / "done.ipynb").read_text(encoding="utf-8"))["cells"]
    assert cells[-1]["outputs"][0]["data"]["text/plain"] == [repr(sys.executable)]


def test_doctor_says_which_python(capsys):
    main(["doctor", "--json"])
    checks = {c["what"]: c for c in json.loads(capsys.readouterr().out)["checks"]}
    found = checks["interpreter of the steps"]
    assert found["found"] == sys.executable == own_kernel()().kernel_spec.argv[0]


# row 15: odd paths


@pytest.mark.parametrize("name", ["my runs", "a {new} run", "run #2", "it's 100 % done"])
def test_a_step_in_a_folder_of_any_name(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    run_step("toy", folder / "out" / "done.ipynb", toy(folder), x=2)
    assert (folder / "out" / "done.ipynb").exists()


@pytest.mark.parametrize("name", ["my profile", "study #2", "mini: again", "[draft]", "it's"])
def test_a_profile_of_any_name_in_a_checkout_with_a_space(clone, tmp_path, name):  # noqa: F811
    "`mfmda reproduce` hands it to Snakemake as it is."
    checkout = tmp_path / "my check-out #1"
    checkout.mkdir()
    for part in ("Snakefile", "settings.ini", "nbs", "mfmda"):
        (clone / part).rename(checkout / part)
    profile = checkout / f"{name}.yaml"
    profile.write_text("base: smoke\n", encoding="utf-8")
    start = "import sys; from mfmda.use.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", start, "reproduce", "--profile", profile, "--dry-run"]
    env = os.environ | dict(PYTHONPATH=str(checkout))
    done = subprocess.run(words, cwd=checkout, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "step_1_source_ddpm" in done.stdout + done.stderr


# rows 16 and 17: means that hide nothing

LESION = Task(("lesion",))


@pytest.fixture
def lesions(tmp_path, monkeypatch):
    "Four eyes (found, missed, false alarm, healthy), and a segmenter of bright spots."
    spot = np.zeros((32, 32), np.uint8)
    spot[8:20, 8:20] = 1
    cases = dict(found=(1, 1), missed=(0, 1), alarm=(1, 0), healthy=(0, 0))
    for kind in ("images", "masks"):
        (tmp_path / "eyes" / kind).mkdir(parents=True)
    for name, (bright, true) in cases.items():
        pixels = (spot * bright * 255)[..., None].repeat(3, 2)
        Image.fromarray(pixels).save(tmp_path / "eyes" / "images" / f"{name}.png")
        Image.fromarray(spot * true).save(tmp_path / "eyes" / "masks" / f"{name}.png")
    segmenter = Segmenter(net(1), facts=dict(size=SIZE), task=LESION)
    with torch.no_grad():
        segmenter.network.weight.fill_(20)
        segmenter.network.bias.fill_(-50)
    monkeypatch.setattr(folders, "load_segmenter", lambda _: segmenter)
    monkeypatch.setattr("mfmda.use.report.load_segmenter", lambda _: segmenter)
    return tmp_path / "eyes"


def test_false_alarms_are_told_beside_the_overlap(lesions, tmp_path, capsys):
    "What was marked in eyes without a lesion has a mean of its own."
    options = dict(model="x", images=lesions, out=tmp_path / "scores")
    assert type_in("evaluate", **options, json=True) == 0
    means = json.loads(capsys.readouterr().out)["means"]
    assert means["lesion_dice"]["images"] == means["lesion_false_alarm"]["images"] == 2
    assert 0.4 < means["lesion_dice"]["mean"] < 0.55
    assert means["lesion_false_alarm"]["mean"] == 0.5
    assert 0.02 < means["lesion_false_area"]["mean"] < 0.2
    rows = read_table(tmp_path / "scores" / "scores.csv")
    assert (
        rows["alarm"]["lesion_false_alarm"] == "1.0" and rows["alarm"]["lesion_dice"] == "nan"
    )
    assert rows["healthy"]["lesion_false_alarm"] == "0.0"


def test_only_healthy_eyes(lesions, capsys):
    "There is no overlap to tell, and still the alarms."
    for kind in ("images", "masks"):
        for name in ("found", "missed"):
            (lesions / kind / f"{name}.png").unlink()
    assert type_in("evaluate", model="x", images=lesions, json=True) == 0
    means = json.loads(capsys.readouterr().out)["means"]
    assert set(means) == {"lesion_false_alarm", "lesion_false_area"}


def test_a_report_tells_false_alarms_too(lesions, tmp_path):
    out = tmp_path / "report.html"
    assert type_in("report", model="x", images=lesions, out=out) == 0
    assert "lesion_false_alarm" in out.read_text(encoding="utf-8")


def test_distances_of_photographs_of_different_size(model, tmp_path, capsys):  # noqa: F811
    "The same eyes, half of them larger: shares of the diagonal, and no mean in pixels."
    folder = write_eyes(tmp_path / "labelled", 4)
    assert type_in("evaluate", model=model, images=folder, json=True) == 0
    alike = json.loads(capsys.readouterr().out)["means"]
    for kind in ("images", "masks"):
        for file in sorted((folder / kind).iterdir())[::2]:
            large = Image.open(file).resize((144, 144), Image.Resampling.NEAREST)
            large.save(file)
    assert type_in("evaluate", model=model, images=folder, json=True) == 0
    mixed = json.loads(capsys.readouterr().out)["means"]
    for name in ("disc_hd95", "cup_hd95", "disc_assd", "cup_assd"):
        assert name in alike and name not in mixed
        share = mixed[f"{name}_share"]["mean"]
        assert share == pytest.approx(alike[f"{name}_share"]["mean"], abs=0.03)
        assert share == pytest.approx(alike[name]["mean"] / np.hypot(48, 48), abs=0.03)
    assert type_in("evaluate", model=model, images=folder) == 0
    assert "differ in size" in capsys.readouterr().out


# row 18

KILLED = """
import os, sys
from pathlib import Path
from mfmda.core.files import atomic_path
folder, die_at = Path(sys.argv[1]), int(sys.argv[2])
calls, replace, remove = [0], os.replace, __import__("shutil").rmtree
def counted(do):
    def call(*args, **options):
        calls[0] += 1
        if calls[0] == die_at:
            os._exit(9)
        return do(*args, **options)
    return call
os.replace = counted(replace)
import shutil
shutil.rmtree = counted(remove)
with atomic_path(folder) as tmp:
    tmp.mkdir()
    (tmp / "new").touch()
"""


@pytest.mark.parametrize("die_at", [1, 2, 3])
def test_a_folder_is_never_lost(tmp_path, die_at):
    "Killed before any of the steps: a version is there, or comes back at the next writing."
    folder = tmp_path / "pairs"
    folder.mkdir()
    (folder / "old").touch()
    words = [sys.executable, "-c", KILLED, folder, str(die_at)]
    assert subprocess.run(words, env=os.environ | dict(PYTHONPATH=str(root))).returncode == 9
    with pytest.raises(ZeroDivisionError), atomic_path(folder):
        1 / 0
    assert [p.name for p in folder.iterdir()] == (["old"] if die_at < 3 else ["new"])


def text_mode_calls(tree):
    "Calls that open or read a text."
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        modes = call.args[1:2] + [k.value for k in call.keywords if k.arg == "mode"]
        binary = any("b" in ast.unparse(mode) for mode in modes)
        opens = name == "open" and isinstance(call.func, ast.Name) and not binary
        if opens or name in ("read_text", "write_text"):
            yield call


@pytest.mark.parametrize("file", sorted((root / "mfmda").rglob("*.py")), ids=lambda p: p.name)
def test_every_text_names_its_encoding(file):
    "Windows would read and write another one."
    calls = text_mode_calls(ast.parse(file.read_text(encoding="utf-8")))
    without = [c.lineno for c in calls if "encoding" not in {k.arg for k in c.keywords}]
    assert not without, f"{file.name}, lines {without}"


# exit statuses


def several_lines(*_, **__):
    raise KeyError("first\nsecond")


def too_deep(*_, **__):
    return too_deep()


def full_disk(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("fault", [several_lines, too_deep, full_disk])
def test_what_nobody_foresaw_is_one_line_and_a_log(monkeypatch, capsys, fault):
    monkeypatch.setattr(cli, "profile_names", fault)
    assert main(["profiles"]) == UNFORESEEN
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("mfmda: ")
    log = Path(error.split()[-1])
    text = log.read_text(encoding="utf-8")
    assert (
        text.startswith("mfmda profiles\n") and "Traceback" in text and fault.__name__ in text
    )
    log.unlink()


def test_a_log_that_cannot_be_written(monkeypatch, capsys):
    monkeypatch.setattr(cli, "profile_names", full_disk)
    monkeypatch.setattr(cli.tempfile, "NamedTemporaryFile", full_disk)
    assert main(["profiles"]) == UNFORESEEN
    error = capsys.readouterr().err
    assert "no log could be written" in error and error.count("\n") == 1


def test_a_terminal_that_lacks_a_character():
    "Windows' own code page has no arrow; a name that is not UTF-8 can be printed nowhere."
    start = "import sys; from mfmda.use.cli import main; sys.exit(main())"
    code = "print('→', '\\udcff')"
    start = start.replace("sys.exit(main())", f"main(['--help']); {code}")
    env = os.environ | dict(PYTHONPATH=str(root), PYTHONIOENCODING="cp1252")
    done = subprocess.run([sys.executable, "-c", start], env=env, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert rb"\u2192 \udcff" in done.stdout
