"""What a practitioner meets: pictures of every kind, a thousand of them, one target image, folders
that cannot be written to; by the commands as they are typed."""

import csv
import json
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import binary_fill_holes, label

from mfmda.core.files import write_json
from mfmda.data.sets import load_phantoms
from mfmda.study.profiles import load_profile
from mfmda.use.cli import main

SIZE = 16  # pixels that the small segmenter sees
FOUNDATION = dict(candidates=["efficientnet_lite0"], image_size=32)
FEW = dict(  # a profile of as few steps as there can be
    base="smoke",
    foundation=FOUNDATION,
    ddpm=dict(steps=2),
    fusion=dict(steps=1),
    adapt=dict(steps=1, score_every=1, score_images=2, batch=2),
    segment=dict(steps=2),
)


def picture_of(eyes, k):
    return Image.fromarray(eyes.images[k].permute(1, 2, 0).numpy())


def write_eyes(folder, n=6, size=48, camera="phantom_a", masks=True):
    "Phantoms as a user would lay them out: images/ and masks/."
    eyes = load_phantoms(camera, 1, 0, n, size)
    (folder / "images").mkdir(parents=True)
    for k, name in enumerate(eyes.ids):
        picture_of(eyes, k).save(folder / "images" / f"{name}.png")
    if masks:
        (folder / "masks").mkdir()
        for name, mask in zip(eyes.ids, eyes.masks):
            Image.fromarray(mask.numpy()).save(folder / "masks" / f"{name}.png")
    return folder


def type_in(command, **options):
    "`mfmda command --name value …` in this process; its exit status. A value of True is a flag."
    words = [command]
    for name, value in options.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return main(words)


def read_table(file, key="image"):
    with file.open(encoding="utf-8") as lines:
        return {row[key]: row for row in csv.DictReader(lines)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A small segmenter that nobody has trained: what it says does not matter here."
    from mfmda.stage2.segmenter import Segmenter
    from mfmda.study.pipeline import new_mfm

    small = load_profile("smoke").replace(foundation=FOUNDATION)
    network = new_mfm(small, "efficientnet_lite0", None, 0)
    folder = tmp_path_factory.mktemp("model") / "segmenter"
    return Segmenter(network, facts=dict(size=SIZE)).save_pretrained(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "`mfmda adapt` to a single target image, in a process of its own."
    root = tmp_path_factory.mktemp("run")
    write_eyes(root / "home", 12, 32)
    write_eyes(root / "clinic", 1, 32, "phantom_b", masks=False)
    write_json(root / "few.json", FEW)
    start = "import sys; from mfmda.use.cli import main; sys.exit(main())"
    words = "adapt --source home --target clinic --out run --profile few.json".split()
    command = [sys.executable, "-c", start, *words]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    return root, done


def write_bomb(path):
    "A PNG whose header promises 40,000 × 40,000 pixels."
    Image.new("L", (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 40_000, 40_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


def write_usable(folder, picture):
    "One eye in every form that can be segmented."
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me by 90° clockwise"
    picture.save(folder / "upright.png")
    picture.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    picture.convert("RGBA").save(folder / "opaque.png")
    picture.convert("L").save(folder / "grey.png")
    picture.save(folder / "photo.JPG")
    picture.resize((900, 900)).save(folder / "large.tif")
    picture.resize((9, 9)).save(folder / "small.bmp")


BAD = dict(  # name of a file -> what its error says
    bad_glass="transparent",
    bad_cmyk="mode CMYK",
    bad_deep="mode I;16",
    bad_thumbnail="7×7 pixels",
    bad_wide="64×40 pixels",
    bad_note="cannot be decoded",
    bad_empty="cannot be decoded",
    bad_bomb="exceeds limit",
)


def write_unusable(folder, picture):
    "The files of `BAD`."
    glass = picture.convert("RGBA")
    glass.putpixel((3, 3), (0, 0, 0, 9))
    glass.save(folder / "bad_glass.png")
    picture.convert("CMYK").save(folder / "bad_cmyk.jpg")
    Image.fromarray(np.zeros((64, 64), np.uint16)).save(folder / "bad_deep.png")
    picture.resize((7, 7)).save(folder / "bad_thumbnail.png")
    picture.crop((0, 0, 64, 40)).save(folder / "bad_wide.png")
    (folder / "bad_note.png").write_text("hello")
    (folder / "bad_empty.jpg").touch()
    write_bomb(folder / "bad_bomb.png")


def test_pictures_of_every_kind(model, tmp_path, capsys):
    "Each is segmented as it is meant, or named with its reason; none stops the others."
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    picture = picture_of(load_phantoms("phantom_a", 1, 0, 1, 64), 0)
    write_usable(photos, picture)
    write_unusable(photos, picture)
    (photos / "notes.txt").write_text("not a picture, and not called one")
    assert type_in("segment", model=model, images=photos, out=out) == 3

    rows, error = read_table(out / "segmentation.csv"), capsys.readouterr().err
    assert len(rows) == 15
    assert {name for name, row in rows.items() if row["error"]} == set(BAD)
    for name, reason in BAD.items():
        assert reason in rows[name]["error"] and f"{name}." in error
    assert error.count("\n") == len(BAD) and "Traceback" not in error

    sizes = {p.stem: Image.open(p).size for p in (out / "masks").iterdir()}
    assert set(sizes) == set(rows) - set(BAD)
    assert sizes["large"] == (900, 900) and sizes["small"] == (9, 9)
    upright, turned, opaque = (
        rows[n] | dict(image="") for n in ("upright", "turned", "opaque")
    )
    assert upright == turned == opaque
    assert upright["far"] == ""  # a segmenter without features does not say


def pieces_and_holes(region):
    "Of a region: how many pieces it has (joined at corners), and its pixels in holes."
    return label(region, np.ones((3, 3)))[1], (binary_fill_holes(region) & ~region).sum()


def without_prior(model, folder):
    "The same segmenter, which now says disc or cup of any pixel as it likes."
    from mfmda.stage2.segmenter import Segmenter

    segmenter = Segmenter.from_pretrained(model)
    logits = segmenter.network.decoder.logits
    with torch.no_grad():
        logits.weight.mul_(10)
        logits.bias.zero_()
    return segmenter.save_pretrained(folder)


def test_tidy_masks_are_whole_and_counted(model, tmp_path, capsys):
    "A segmenter that guesses gives pieces; with --tidy there are none, and the count is told."
    photos, plain, tidy = (tmp_path / name for name in ("photos", "plain", "tidy"))
    photos = write_eyes(photos, 12, SIZE, masks=False) / "images"
    model = without_prior(model, tmp_path / "guessing")
    assert type_in("segment", model=model, images=photos, out=plain) == 0
    assert "mended" not in capsys.readouterr().out
    assert type_in("segment", model=model, images=photos, out=tidy, tidy=True) == 0
    said, rows = capsys.readouterr().out, read_table(tidy / "segmentation.csv")

    differ = 0
    for name, row in rows.items():
        before, after = (
            np.asarray(Image.open(out / "masks" / f"{name}.png")) for out in (plain, tidy)
        )
        changed = (before != after).any()
        differ += changed
        assert row["tidied"] == ("yes" if changed else "no")
        for region in (after > 0, after == 2):
            pieces, holes = pieces_and_holes(region)
            assert pieces <= 1 and holes == 0
    assert differ and f"{differ} of their masks were mended" in said


def test_a_thousand_photographs_with_three_bad_ones(model, tmp_path, capsys):
    "A long list is finished: 997 masks, and the three bad files by name."
    photos, rng = tmp_path / "photos", np.random.default_rng(0)
    photos.mkdir()
    for i in range(1000):
        pixels = rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"eye{i:04}.png")
    cut_off = photos / "eye0007.png"
    cut_off.write_bytes(cut_off.read_bytes()[:60])
    (photos / "eye0500.png").write_text("hello")
    Image.new("RGB", (SIZE, 20)).save(photos / "eye0999.png")
    out = tmp_path / "out"
    assert type_in("segment", model=model, images=photos, out=out, json=True) == 3

    said, bad = capsys.readouterr(), ["eye0007", "eye0500", "eye0999"]
    rows = json.loads(said.out)
    assert [row["image"] for row in rows if row["error"]] == bad and len(rows) == 1000
    failed = [line for line in said.err.splitlines() if line.startswith("mfmda: ")]
    assert len(failed) == 3 and all(name in said.err for name in bad)
    assert "1000 pictures found, 997 used" in said.err
    assert len(list((out / "masks").iterdir())) == 997
    assert len(read_table(out / "segmentation.csv")) == 1000


def test_scores_of_a_folder_with_damaged_files(model, tmp_path, capsys):
    "What cannot be scored is named, and no mean counts it."
    folder, out = write_eyes(tmp_path / "labelled"), tmp_path / "scores"
    images, masks = folder / "images", folder / "masks"
    names = sorted(p.stem for p in images.iterdir())
    (images / f"{names[0]}.png").write_text("hello")
    Image.new("L", (48, 48), 77).save(masks / f"{names[1]}.png")
    too_small = np.asarray(Image.open(masks / f"{names[2]}.png"))[:40, :40]
    Image.fromarray(too_small).save(masks / f"{names[2]}.png")
    assert type_in("evaluate", model=model, images=folder, out=out, json=True) == 3

    said = capsys.readouterr()
    told = json.loads(said.out)
    assert [row["image"] for row in told["images"] if row["error"]] == names[:3]
    failed = [line for line in said.err.splitlines() if line.startswith("mfmda: ")]
    assert len(failed) == 3 and "40×40 pixels" in said.err
    means = read_table(out / "means.csv", "score")
    assert set(means) == set(told["means"]) and "disc_dice" in means
    for mean in means.values():
        assert float(mean["low"]) <= float(mean["mean"]) <= float(mean["high"])
        assert mean["images"] == "3"
    columns = list(next(iter(read_table(out / "scores.csv").values())))
    assert columns == ["image", "width", *means, "far", "distance", "error"]


def test_an_image_without_its_mask_is_refused(model, tmp_path, capsys):
    "A labelled folder that lacks one mask is a mistake, not a folder with one image less."
    folder = write_eyes(tmp_path / "labelled", 3)
    missing = max((folder / "masks").iterdir())
    missing.unlink()
    assert type_in("evaluate", model=model, images=folder) == 2
    assert missing.stem in capsys.readouterr().err


def test_one_target_image_is_a_warning(run):
    "A single target image is too few to trust: said before and after, and no reason to stop."
    _, done = run
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 × source DDPM" in done.stdout and "warning: Only 1 target image:" in done.stdout
    assert "Traceback" not in done.stderr


def test_what_such_a_run_translates(run, tmp_path, capsys):
    "A finished run moves a labelled folder; one without its shots says what is missing."
    root, _ = run
    out = tmp_path / "moved"
    options = dict(run=root / "run", images=root / "home", out=out)
    assert type_in("translate", **options) == 0
    assert len(list((out / "masks").iterdir())) == 12
    assert Image.open(next((out / "images").iterdir())).size == (32, 32)

    shots, elsewhere = root / "run" / "shots", root / "run" / "elsewhere"
    shots.rename(elsewhere)
    try:
        assert type_in("translate", **options) == 2
    finally:
        elsewhere.rename(shots)
    assert "shots is missing" in capsys.readouterr().err


def test_what_such_a_run_reports(run, tmp_path):
    "The report repeats the warning, says what it leaves out, and describes every picture."
    root, _ = run
    out = tmp_path / "report.html"
    assert type_in("report", model=root / "run", images=root / "home", out=out, most=2) == 0
    page = out.read_text(encoding="utf-8")
    for words in (
        "Warning: Only 1 target image:",
        "10 more are not shown",
        "Against the masks",
    ):
        assert words in page
    assert "<script" not in page
    assert page.count("<img ") == page.count('alt="') >= 3


def test_the_target_image_itself_is_not_far(run, tmp_path, capsys):
    "The photograph that a segmenter was made from is near to what it knows."
    root, _ = run
    folders = dict(model=root / "run", images=root / "clinic", out=tmp_path / "out")
    assert type_in("segment", **folders, json=True) == 0
    (only,) = json.loads(capsys.readouterr().out)
    assert only["far"] == "no" and only["distance"] < 0.1


@pytest.mark.parametrize(
    "target, says",
    [("empty", "holds no picture"), ("absent", "no such folder"), ("home", "are the source's")],
)
def test_wrong_targets_are_refused_before_work(tmp_path, capsys, target, says):
    "A target that cannot be adapted to costs one line and leaves no folder behind."
    home, out = write_eyes(tmp_path / "home", 4, 32), tmp_path / "run"
    (tmp_path / "empty" / "images").mkdir(parents=True)
    few = write_json(tmp_path / "few.json", FEW)
    folders = dict(source=home, target=tmp_path / target, out=out)
    assert type_in("adapt", **folders, profile=few) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not out.exists()


WRITERS = "segment evaluate translate report adapt".split()


def options_of(command, model, root, out):
    "How a command that writes would be typed with folders that are all there."
    run, home, photos = root / "run", root / "home", root / "clinic" / "images"
    return dict(
        segment=dict(model=model, images=photos, out=out),
        evaluate=dict(model=model, images=home, out=out),
        translate=dict(run=run, images=photos, out=out),
        report=dict(model=model, images=photos, out=out / "report.html"),
        adapt=dict(source=home, target=root / "clinic", out=out, profile=root / "few.json"),
    )[command]


@pytest.fixture
def no_timing(monkeypatch):
    "`adapt` says how long it will take by timing its stages: not before it can write."

    def timed(*_, **__):
        pytest.fail("stages were timed first")

    monkeypatch.setattr("mfmda.use.camera.time_stages", timed)


@pytest.mark.usefixtures("no_timing")
@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("way", ["file", "forbidden"])
def test_no_permission_to_write(model, run, tmp_path, capsys, command, way):
    "A place that cannot be written to is named in one line, before any work."
    if way == "forbidden" and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    place = tmp_path / "place"
    place.touch() if way == "file" else place.mkdir(mode=0o555)
    assert type_in(command, **options_of(command, model, run[0], place / "out")) == 2
    error = capsys.readouterr().err
    assert "cannot be written to" in error and "place" in error and error.count("\n") == 1


COMMANDS = "reproduce step profiles adapt segment evaluate translate report".split()
COMMANDS += "export doctor estimate".split()


def test_help_names_every_command(capsys):
    "Help of the program lists its commands and ends well; so does the help of each."
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in [*COMMANDS, "data"])
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        assert "example: mfmda " in capsys.readouterr().out


def test_help_is_quick():
    "Help needs none of the packages that take seconds to import."
    code = """
import sys
from mfmda.use.cli import main
assert main(["--help"]) == 0
assert not {"torch", "matplotlib", "pandas"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words, says",
    [
        (["fly"], "No such command 'fly'"),
        (["adapt", "--source", "home"], "Missing option '--target'"),
        (["segment", "--magic"], "No such option: --magic"),
        (["reproduce", "--cores", "many"], "Invalid value for '--cores'"),
    ],
)
def test_what_was_typed_wrongly_is_named(capsys, words, says):
    "A usage error names the word, with status 2 and no traceback."
    assert main(words) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error


def doctor(capsys):
    status = main(["doctor", "--json"])
    told = json.loads(capsys.readouterr().out)
    return status, told["mini"], {check["what"]: check for check in told["checks"]}


def test_doctor_knows_this_machine(capsys, tmp_path, monkeypatch):
    "Doctor's status follows what it found, and each lack has a remedy."
    monkeypatch.chdir(tmp_path)
    status, able, checks = doctor(capsys)
    assert status == (0 if able else 3)
    assert checks["packages"]["ok"] and checks["writing here"]["ok"]
    assert str(tmp_path) in checks["writing here"]["found"]
    assert all(check["mend"] for check in checks.values() if not check["ok"])


def test_doctor_finds_a_users_sets(capsys, tmp_path, monkeypatch):
    "A folder of crops below MFMDA_DATA is listed by name."
    monkeypatch.setenv("MFMDA_DATA", str(tmp_path / "sets"))
    write_eyes(tmp_path / "sets" / "mine", 1, 16)
    _, _, checks = doctor(capsys)
    assert checks["data"]["ok"] and checks["data"]["found"].endswith("sets: mine")
