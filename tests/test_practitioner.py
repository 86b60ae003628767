"""What a practitioner meets: pictures of every kind, a thousand of them, one target image, folders that cannot be written to; by the commands as they are typed."""
import csv
import json
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from mfmda.command import main
from mfmda.config import Profile, load_profile, merge, write_json
from mfmda.data import load_phantoms

SIZE = 16   # pixels that the small segmenter sees


def eyes(folder, n=6, size=48, camera="phantom_a", masks=True, start=0):
    "Phantoms as a user would lay them out: images/ and masks/."
    drawn = load_phantoms(camera, 1, start, n, size)
    for kind, pictures in dict(images=drawn.images.permute(0, 2, 3, 1).numpy(), **(dict(masks=drawn.masks.numpy()) if masks else {})).items():
        (folder / kind).mkdir(parents=True)
        for name, picture in zip(drawn.ids, pictures):
            Image.fromarray(picture).save(folder / kind / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A small segmenter that nobody has trained: what it says does not matter here."
    from mfmda.pipeline import new_mfm
    from mfmda.segment import Segmenter
    small = Profile(**merge(load_profile("smoke").to_dict(), dict(foundation=dict(candidates=["efficientnet_lite0"], image_size=32))))
    return Segmenter(new_mfm(small, "efficientnet_lite0", None, 0), facts=dict(size=SIZE)).save_pretrained(tmp_path_factory.mktemp("model") / "segmenter")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "`mfmda adapt` to a single target image, in as few steps as there can be."
    root = tmp_path_factory.mktemp("run")
    eyes(root / "home", 12, 32)
    eyes(root / "clinic", 1, 32, "phantom_b", masks=False)
    few = write_json(root / "few.json", dict(base="smoke", foundation=dict(candidates=["efficientnet_lite0"], image_size=32), ddpm=dict(steps=2), adapt=dict(warmup_steps=1, steps=1, score_every=1, score_images=2, batch=2), segment=dict(steps=2)))
    done = subprocess.run([sys.executable, "-c", "import sys; from mfmda.command import main; sys.exit(main())", "adapt", "--source", root / "home", "--target", root / "clinic", "--out", root / "run", "--profile", few], capture_output=True, text=True)
    return root, done


def table(file):
    return {row["image"]: row for row in csv.DictReader(file.open(encoding="utf-8"))}


def bomb(path):
    "A PNG whose header promises 40,000 × 40,000 pixels."
    Image.new("L", (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 40_000, 40_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


def test_pictures_of_every_kind(model, tmp_path, capsys):
    "Each is segmented as it is meant, or named with its reason; none stops the others."
    photos = tmp_path / "photos"
    photos.mkdir()
    picture = Image.fromarray(load_phantoms("phantom_a", 1, 0, 1, 64).images[0].permute(1, 2, 0).numpy())
    exif = Image.Exif()
    exif[0x0112] = 6                                             # "turn me by 90° clockwise"
    picture.save(photos / "upright.png")
    picture.transpose(Image.Transpose.ROTATE_90).save(photos / "turned.png", exif=exif)
    picture.convert("RGBA").save(photos / "opaque.png")
    picture.convert("L").save(photos / "grey.png")
    picture.save(photos / "photo.JPG")
    picture.resize((900, 900)).save(photos / "large.tif")
    picture.resize((9, 9)).save(photos / "small.bmp")
    glass = picture.convert("RGBA")
    glass.putpixel((3, 3), (0, 0, 0, 9))
    glass.save(photos / "bad_glass.png")
    picture.convert("CMYK").save(photos / "bad_cmyk.jpg")
    Image.fromarray(np.zeros((64, 64), np.uint16)).save(photos / "bad_deep.png")
    picture.resize((7, 7)).save(photos / "bad_thumbnail.png")
    picture.crop((0, 0, 64, 40)).save(photos / "bad_wide.png")
    (photos / "bad_note.png").write_text("hello")
    (photos / "bad_empty.jpg").touch()
    bomb(photos / "bad_bomb.png")
    (photos / "notes.txt").write_text("not a picture, and not called one")
    assert main(["segment", "--model", str(model), "--images", str(photos), "--out", str(tmp_path / "out")]) == 1
    rows, error = table(tmp_path / "out" / "segmentation.csv"), capsys.readouterr().err
    bad = {name for name, row in rows.items() if row["error"]}
    assert bad == {name for name in rows if name.startswith("bad_")} and len(bad) == 8 and len(rows) == 15
    assert all(f"{name}." in error for name in bad) and error.count("\n") == 8 and "Traceback" not in error
    for name, reason in dict(bad_glass="transparent", bad_cmyk="mode CMYK", bad_deep="mode I;16", bad_thumbnail="7×7 pixels", bad_wide="64×40 pixels", bad_note="cannot be decoded", bad_empty="cannot be decoded", bad_bomb="exceeds limit").items():
        assert reason in rows[name]["error"]
    same = [{k: v for k, v in rows[name].items() if k != "image"} for name in ("upright", "turned", "opaque")]
    assert same[0] == same[1] == same[2] and rows["upright"]["far"] == ""
    sizes = {p.stem: Image.open(p).size for p in (tmp_path / "out" / "masks").iterdir()}
    assert sizes["large"] == (900, 900) and sizes["small"] == (9, 9) and set(sizes) == set(rows) - bad


def test_a_thousand_photographs_with_three_bad_ones(model, tmp_path, capsys):
    photos, rng = tmp_path / "photos", np.random.default_rng(0)
    photos.mkdir()
    for i in range(1000):
        Image.fromarray(rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)).save(photos / f"eye{i:04}.png")
    (photos / "eye0007.png").write_bytes((photos / "eye0007.png").read_bytes()[:60])
    (photos / "eye0500.png").write_text("hello")
    Image.new("RGB", (SIZE, 20)).save(photos / "eye0999.png")
    assert main(["segment", "--model", str(model), "--images", str(photos), "--out", str(tmp_path / "out"), "--json"]) == 1
    said = capsys.readouterr()
    rows = json.loads(said.out)
    assert [r["image"] for r in rows if r["error"]] == ["eye0007", "eye0500", "eye0999"] and len(rows) == 1000
    assert said.err.count("\n") == 3 and all(name in said.err for name in ("eye0007", "eye0500", "eye0999"))
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 997 and len(table(tmp_path / "out" / "segmentation.csv")) == 1000


def test_scores_of_a_folder_with_damaged_files(model, tmp_path, capsys):
    folder = eyes(tmp_path / "labelled")
    names = sorted(p.stem for p in (folder / "images").iterdir())
    (folder / "images" / f"{names[0]}.png").write_text("hello")
    Image.new("L", (48, 48), 77).save(folder / "masks" / f"{names[1]}.png")
    Image.fromarray(np.asarray(Image.open(folder / "masks" / f"{names[2]}.png"))[:40, :40]).save(folder / "masks" / f"{names[2]}.png")
    assert main(["evaluate", "--model", str(model), "--images", str(folder), "--out", str(tmp_path / "scores"), "--json"]) == 1
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert [r["image"] for r in told["images"] if r["error"]] == names[:3] and said.err.count("\n") == 3 and "40×40 pixels" in said.err
    means = {row["score"]: row for row in csv.DictReader((tmp_path / "scores" / "means.csv").open())}
    assert set(means) == set(told["means"]) and {row["images"] for row in means.values()} == {"3"}
    assert all(float(m["low"]) <= float(m["mean"]) <= float(m["high"]) for m in means.values())
    (folder / "masks" / f"{names[5]}.png").unlink()
    assert main(["evaluate", "--model", str(model), "--images", str(folder)]) == 2 and names[5] in capsys.readouterr().err


def test_one_target_image_is_a_warning_and_the_run_can_be_used(run, tmp_path, capsys):
    root, done = run
    assert done.returncode == 0, done.stderr[-2000:]
    assert "warning: Only 1 target image:" in done.stdout and "2 × source DDPM" in done.stdout and "Traceback" not in done.stderr
    assert main(["translate", "--run", str(root / "run"), "--images", str(root / "home"), "--out", str(tmp_path / "moved")]) == 0
    assert len(list((tmp_path / "moved" / "masks").iterdir())) == 12 and Image.open(next((tmp_path / "moved" / "images").iterdir())).size == (32, 32)
    assert main(["report", "--model", str(root / "run"), "--images", str(root / "home"), "--out", str(tmp_path / "report.html"), "--most", "2"]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Warning: Only 1 target image:" in page and "10 more are not shown" in page and "<script" not in page and "Against the masks" in page and page.count("<img ") == page.count('alt="') >= 3
    capsys.readouterr()
    assert main(["segment", "--model", str(root / "run"), "--images", str(root / "clinic"), "--out", str(tmp_path / "out"), "--json"]) == 0
    only, = json.loads(capsys.readouterr().out)
    assert only["far"] == "no" and only["distance"] < .1          # the one that it was made from
    (root / "run" / "shots").rename(root / "run" / "elsewhere")
    assert main(["translate", "--run", str(root / "run"), "--images", str(root / "home"), "--out", str(tmp_path / "moved")]) == 2
    assert "shots is missing" in capsys.readouterr().err
    (root / "run" / "elsewhere").rename(root / "run" / "shots")


@pytest.mark.parametrize("target, says", [("empty", "holds no picture"), ("absent", "no such folder"), ("home", "are the source's")])
def test_wrong_targets_are_refused_before_work(tmp_path, capsys, target, says):
    eyes(tmp_path / "home", 4, 32)
    (tmp_path / "empty" / "images").mkdir(parents=True)
    few = write_json(tmp_path / "few.json", dict(base="smoke", adapt=dict(warmup_steps=1, steps=1), ddpm=dict(steps=1), segment=dict(steps=1)))
    assert main(["adapt", "--source", str(tmp_path / "home"), "--target", str(tmp_path / target), "--out", str(tmp_path / "run"), "--profile", str(few)]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def commands(model, run, photos, home, out):
    return [["segment", "--model", model, "--images", photos, "--out", out], ["evaluate", "--model", model, "--images", home, "--out", out], ["translate", "--run", run, "--images", photos, "--out", out],
            ["report", "--model", model, "--images", photos, "--out", out / "report.html"], ["adapt", "--source", home, "--target", photos.parent, "--out", out, "--profile", run.parent / "few.json"]]


@pytest.mark.parametrize("k", range(5), ids="segment evaluate translate report adapt".split())
@pytest.mark.parametrize("way", ["file", "forbidden"])
def test_no_permission_to_write(model, run, tmp_path, capsys, monkeypatch, k, way):
    "Named in one line, before any work."
    monkeypatch.setattr("mfmda.command.expect", lambda *_: pytest.fail("stages were timed first"))
    if way == "forbidden" and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "place").touch() if way == "file" else (tmp_path / "place").mkdir(mode=0o555)
    root, _ = run
    words = commands(model, root / "run", root / "clinic" / "images", root / "home", tmp_path / "place" / "out")[k]
    assert main(list(map(str, words))) == 2
    error = capsys.readouterr().err
    assert "cannot be written to" in error and "place" in error and error.count("\n") == 1


def test_help_is_quick_and_names_every_command():
    code = "import sys; from mfmda.command import main\ntry: main(['--help'])\nexcept SystemExit: pass\nassert not {'torch', 'matplotlib', 'pandas'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in "reproduce step profiles adapt data estimate segment evaluate translate report export doctor".split())


def test_doctor_knows_what_is_declared(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status = main(["doctor", "--json"])
    told = json.loads(capsys.readouterr().out)
    checks = {c["what"]: c for c in told["checks"]}
    assert status == (0 if told["mini"] else 1) and checks["packages"]["ok"] and checks["writing here"]["ok"] and str(tmp_path) in checks["writing here"]["found"]
    assert all(c["mend"] for c in told["checks"] if not c["ok"])
    monkeypatch.setenv("MFMDA_DATA", str(tmp_path / "sets"))
    eyes(tmp_path / "sets" / "mine", 1, 16)
    main(["doctor", "--json"])
    checks = {c["what"]: c for c in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["data"]["ok"] and checks["data"]["found"].endswith("sets: mine")
