"""Folders as people have them: what a mask's values mean, files that are not read, photographs
under two names, targets with masks. Labels come out right, or the file is named."""

import csv
import json
import logging
import os
import shutil
import unicodedata
from collections import Counter
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from mfmda.core.files import InputError
from mfmda.data.readers import DISC_CUP, VESSELS, Task
from mfmda.data.scan import in_words, scan_folder, shared
from mfmda.data.sets import few_shot, load_folder, load_phantoms, load_set, split
from mfmda.use.cli import main

EXAMPLES = int(os.environ.get("MFMDA_EXAMPLES", 200))  # over all drawn folders
SIZE = 48


def write_set(folder, n=3, size=SIZE, masks=True, first=0, task=DISC_CUP):
    "Phantoms as a user would lay them out; returns their labels by name."
    eyes = load_phantoms("phantom_a", 1, first, n, size, task)
    for part in ("images", "masks") if masks else ("images",):
        (folder / part).mkdir(parents=True)
    for k, image in enumerate(eyes.images):
        pixels = image.permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / "images" / f"eye{k}.png")
        if masks:
            Image.fromarray(eyes.masks[k].numpy()).save(folder / "masks" / f"eye{k}.png")
    return {f"eye{k}": mask for k, mask in enumerate(eyes.masks.numpy())}


def rewrite(folder, truth, write):
    "Every mask of a set, written as `write(path, labels)` does."
    for name, labels in truth.items():
        (folder / "masks" / f"{name}.png").unlink()
        write(folder / "masks" / f"{name}.png", labels)


def named_or_right(folder, truth, task=DISC_CUP, **options):
    "What `load_folder` says of a folder; None where all labels come out right."
    try:
        dataset = load_folder(folder, SIZE, task=task, **options)
    except InputError as error:
        return str(error)
    assert sorted(dataset.ids) == sorted(truth)
    for name, labels in zip(dataset.ids, dataset.stored_masks):
        assert (labels == truth[name]).all(), f"{name}: wrong labels, and nothing was said"
    return None


# What a label means


def with_values(table, dtype=np.uint8, suffix=".png"):
    def write(path, labels):
        Image.fromarray(np.array(table, dtype)[labels]).save(path.with_suffix(suffix))

    return write


def with_palette(indices, colours):
    "Labels as indices into a palette."

    def write(path, labels):
        with_colours(np.array(indices, np.uint8)[labels], indices, colours).save(path)

    return write


def with_colours(pixels, indices, colours):
    "Indices (H, W) as a picture with a palette."
    picture, flat = Image.fromarray(pixels).convert("L"), [0] * 768
    for index, colour in zip(indices, colours):
        flat[3 * index : 3 * index + 3] = colour
    picture.putpalette(flat)
    return picture


def one_bit(inverted):
    def write(path, labels):
        Image.fromarray((labels == 0) if inverted else (labels > 0)).save(path)

    return write


RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)
MEANINGS = {  # of disc and cup -> (how masks are written, the reading that the error names)
    "coloured palette, background 2": (with_palette((2, 1, 0), (RED, GREEN, BLUE)), "2,1,0"),
    "coloured palette, background 1": (with_palette((1, 0, 2), (RED, GREEN, BLUE)), "1,0,2"),
    "coloured palette, indices 5 7 9": (with_palette((5, 7, 9), (RED, GREEN, BLUE)), "5,7,9"),
    "grey palette that swaps rim and cup": (
        with_palette((0, 1, 2), [[0] * 3, [255] * 3, [128] * 3]),
        "0,255,128",
    ),
    "palette of nearly black": (with_palette((0, 1, 2), [[0] * 3, [2] * 3, [1] * 3]), "0,2,1"),
    "background 2, cup 0": (with_values((2, 1, 0)), "2,1,0"),
    "cup 1, rim 2": (with_values((0, 2, 1)), "0,2,1"),
    "rim 255, cup 128": (with_values((0, 255, 128)), "0,255,128"),
    "background 1, cup 2": (with_values((1, 0, 2)), "1,0,2"),
    "background 255, cup 128": (with_values((255, 0, 128)), "255,0,128"),
    "background 128": (with_values((128, 255, 0)), "128,255,0"),
    "16 bits, cup 1": (with_values((0, 2, 1), np.uint16), "0,2,1"),
    "three greys": (with_values((0, 85, 170)), "0,85,170"),
}


@pytest.mark.parametrize("meaning", MEANINGS)
def test_a_reading_that_the_picture_contradicts(tmp_path, meaning):
    "The file is named with the likelier reading, and that reading gives the labels."
    from mfmda.data.readers import Encoding

    truth, (write, labels) = write_set(tmp_path / "set"), MEANINGS[meaning]
    rewrite(tmp_path / "set", truth, write)
    said = named_or_right(tmp_path / "set", truth)
    assert "eye0.png" in said and f"give labels={labels} if so" in said
    given = Encoding(labels)
    assert named_or_right(tmp_path / "set", truth, encoding=given) is None


def test_a_mask_is_right_as_it_stands_where_its_owner_says_so(tmp_path):
    "A disc that fills the border contradicts the picture; labels=0,1,2 is believed."
    from mfmda.data.readers import Encoding

    write_set(tmp_path / "set", 1)
    labels = np.ones((SIZE, SIZE), np.uint8)
    labels[0, :5], labels[20:30, 20:30] = 0, 2
    Image.fromarray(labels).save(tmp_path / "set/masks/eye0.png")
    truth = dict(eye0=labels)
    assert "labels=0,1,2 if it is right as it stands" in named_or_right(tmp_path / "set", truth)
    given = Encoding((0, 1, 2))
    assert named_or_right(tmp_path / "set", truth, encoding=given) is None


VESSEL_MEANINGS = {
    "one bit, inverted": (one_bit(True), "1,0"),
    "0 and 1, inverted": (with_values((1, 0)), "1,0"),
    "0 and 255, inverted": (with_values((255, 0)), "255,0"),
    "black on a white palette": (with_palette((0, 1), [[255] * 3, [0] * 3]), "255,0"),
    "two colours, inverted": (with_palette((1, 0), (RED, BLUE)), "1,0"),
    "1 and 2": (with_values((1, 2)), "1,2"),
}


@pytest.mark.parametrize("meaning", VESSEL_MEANINGS)
def test_an_inverted_vessel_mask(tmp_path, meaning):
    from mfmda.data.readers import Encoding

    truth = write_set(tmp_path / "set", task=VESSELS)
    write, labels = VESSEL_MEANINGS[meaning]
    rewrite(tmp_path / "set", truth, write)
    said = named_or_right(tmp_path / "set", truth, VESSELS)
    assert "eye0.png" in said and f"give labels={labels} if so" in said
    given = Encoding(labels)
    assert named_or_right(tmp_path / "set", truth, VESSELS, encoding=given) is None


def test_a_vessel_mask_that_is_inverted_within_the_field_of_view(tmp_path, caplog):
    "The border is background, so nothing contradicts; what can be told is told."
    folder = tmp_path / "set"
    truth = write_set(folder, task=VESSELS)
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    field = y**2 + x**2 < (SIZE / 2 - 1) ** 2
    rewrite(folder, truth, lambda path, labels: one_bit(True)(path, np.where(field, labels, 1)))
    load_folder(folder, SIZE, task=VESSELS)
    assert "vessel fills" in caplog.text and "inverted" in caplog.text


@pytest.mark.parametrize("region", ["disc", "cup"])
def test_an_inverted_mask_of_one_region(tmp_path, region):
    "Of regions in files of their own, the one that is inverted is named."
    folder = tmp_path / "set"
    truth = write_set(folder)
    shutil.rmtree(folder / "masks")
    task = replace(DISC_CUP, everywhere=False)
    for name, inside in dict(disc=1, cup=2).items():
        (folder / f"masks_{name}").mkdir()
        for eye, labels in truth.items():
            part = (labels >= inside) != (name == region)
            Image.fromarray(part).save(folder / f"masks_{name}" / f"{eye}.png")
    said = named_or_right(folder, truth, task)
    assert f"masks_{region}/eye0.png" in said and "give labels=1,0 if so" in said


def smooth(path, labels):
    table = np.array((0, 128, 255), np.uint8)
    Image.fromarray(table[labels]).resize((4 * SIZE,) * 2).resize((SIZE,) * 2).save(path)


def jpeg(path, labels):
    table = np.array((255, 128, 0), np.uint8)
    Image.fromarray(table[labels]).save(path.with_suffix(".jpg"), quality=75)


def jpeg_called_png(path, labels):
    Image.fromarray(np.array((0, 128, 255), np.uint8)[labels]).save(path, "JPEG")


@pytest.mark.parametrize(
    "write, cause", [(smooth, "anti-aliased"), (jpeg, "JPEG"), (jpeg_called_png, "JPEG")]
)
def test_blended_masks(tmp_path, write, cause):
    "The cause and the way out are named; with a threshold nearly all labels are right."
    from mfmda.data.readers import Encoding

    truth = write_set(tmp_path / "set")
    rewrite(tmp_path / "set", truth, write)
    said = named_or_right(tmp_path / "set", truth)
    assert "masks/eye0." in said and cause in said and "threshold" in said
    read = load_folder(tmp_path / "set", SIZE, encoding=Encoding(threshold=True))
    for name, labels in zip(read.ids, read.stored_masks):
        assert (labels == truth[name]).mean() > 0.97


def colour_jpeg(path, labels):
    Image.fromarray(labels).convert("RGB").save(path.with_suffix(".jpg"))


@pytest.mark.parametrize("write", [with_values((0, 1, 2), suffix=".jpg"), colour_jpeg])
def test_labels_that_jpeg_has_lost(tmp_path, write):
    "Values 0, 1 and 2 do not survive JPEG, though what comes out looks like labels."
    truth = write_set(tmp_path / "set")
    rewrite(tmp_path / "set", truth, write)
    said = named_or_right(tmp_path / "set", truth)
    assert "eye0.jpg" in said and "JPEG" in said


# What was not used is told


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A small segmenter that nobody has trained."
    from mfmda.stage2.segmenter import Segmenter
    from mfmda.study.pipeline import new_mfm
    from mfmda.study.profiles import load_profile

    small = load_profile("smoke").replace(
        foundation=dict(candidates=["efficientnet_lite0"], image_size=32)
    )
    network = new_mfm(small, "efficientnet_lite0", None, 0)
    folder = tmp_path_factory.mktemp("model") / "segmenter"
    return Segmenter(network, facts=dict(size=16)).save_pretrained(folder)


def as_webp(path):
    Image.open(path).save(path.with_suffix(".webp"))


def as_heic(path):
    path.with_suffix(".heic").write_bytes(bytes(4) + b"ftypheic" + bytes(200))


def as_dicom(path):
    path.with_suffix(".dcm").write_bytes(bytes(128) + b"DICM" + bytes(80))


def as_dicom_without_ending(path):
    path.with_suffix("").write_bytes(bytes(128) + b"DICM" + bytes(80))


def as_png_without_ending(path):
    shutil.copy(path, path.with_suffix(""))


def as_gif(path):
    Image.open(path).save(path.with_suffix(".gif"))


def in_a_subfolder(path):
    (path.parent / "left" / "day 1").mkdir(parents=True, exist_ok=True)
    shutil.copy(path, path.parent / "left" / "day 1")


UNREAD = [as_webp, as_heic, as_dicom, as_dicom_without_ending, as_png_without_ending, as_gif]
UNREAD += [in_a_subfolder]


@pytest.mark.parametrize("layout", ["flat", "images"])
@pytest.mark.parametrize("how", UNREAD)
def test_photographs_that_are_not_read(model, tmp_path, capsys, how, layout):
    "Three of four: each is a line of the table with its reason, and the exit status says so."
    write_set(tmp_path / "clinic", 4, masks=False)
    images = tmp_path / "clinic" / "images"
    for name in ("eye1", "eye2", "eye3"):
        how(images / f"{name}.png")
        (images / f"{name}.png").unlink()
    place = images if layout == "flat" else images.parent
    out = tmp_path / "out"
    words = ["segment", "--model", model, "--images", place, "--out", out]
    assert main(list(map(str, words))) == 3
    table = (out / "segmentation.csv").read_text(encoding="utf-8")
    error = capsys.readouterr().err
    for name in ("eye1", "eye2", "eye3"):
        assert name in table and name in error
    with pytest.raises(InputError, match="3 pictures of .* cannot be used") as refused:
        load_folder(images.parent, SIZE)
    assert all(name in str(refused.value) for name in ("eye1", "eye2", "eye3"))


def test_what_is_no_picture_is_no_fault(tmp_path):
    "Notes, tables, hidden files and what mfmda wrote are left alone."
    folder = tmp_path / "set"
    truth = write_set(folder)
    (folder / "images" / "notes.txt").write_text("seen on Monday")
    (folder / "images" / ".DS_Store").write_bytes(bytes(10))
    shutil.copy(folder / "images" / "eye0.png", folder / "images" / "._eye0.png")
    (folder / "images" / "out" / "masks").mkdir(parents=True)
    (folder / "images" / "out" / "segmentation.csv").touch()
    shutil.copy(folder / "masks" / "eye0.png", folder / "images" / "out" / "masks")
    assert named_or_right(folder, truth) is None


@pytest.mark.parametrize("twin", ["eye1.tif", "EYE1.png", "eye1.PNG"])
def test_a_name_that_is_there_twice(model, tmp_path, capsys, twin):
    "Neither of two files of one name is chosen in silence."
    write_set(tmp_path / "clinic", masks=False)
    images = tmp_path / "clinic" / "images"
    if (images / twin).exists():
        pytest.skip("the file system takes both names for one")
    Image.open(images / "eye0.png").save(images / twin)
    words = ["segment", "--model", model, "--images", images, "--out", tmp_path / "out"]
    assert main(list(map(str, words))) == 2
    error = capsys.readouterr().err
    assert twin in error and "eye1.png" in error


def test_a_mask_whose_accents_are_encoded_otherwise(tmp_path):
    folder = tmp_path / "set"
    write_set(folder, 1)
    composed, apart = (unicodedata.normalize(form, "œil_gauché") for form in ("NFC", "NFD"))
    (folder / "images/eye0.png").rename(folder / f"images/{composed}.png")
    (folder / "masks/eye0.png").rename(folder / f"masks/{apart}.png")
    if (folder / f"masks/{composed}.png").exists():
        pytest.skip("the file system takes both names for one")
    with pytest.raises(InputError, match="give both the same name"):
        load_folder(folder, SIZE)


def test_masks_called_in_another_case(tmp_path, capsys):
    "`data crop` names what it wanted and what it found, and writes nothing."
    eyes, root, out = load_phantoms("phantom_a", 1, 0, 2, 96), tmp_path / "root", tmp_path / "o"
    (root / "GT").mkdir(parents=True)
    for k, image in enumerate(eyes.images):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture.save(root / f"drishtiGS_00{k}.png")
        for region in ("OD", "CUP"):
            picture.convert("L").save(root / f"GT/drishtiGS_00{k}_{region}segSOFTMAP.png")
    words = f"data crop --layout drishti --root {root} --out {out} --side 64".split()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "drishtiGS_000_ODsegSoftmap, found drishtiGS_000_ODsegSOFTMAP.png" in error
    assert not out.exists()


def test_masks_of_another_rater(tmp_path, capsys):
    "Masks are there, none has a wanted name: both are told."
    root, out = tmp_path / "root", tmp_path / "out"
    write_set(root / "BinRushed", 1)
    (root / "BinRushed/masks/eye0.png").rename(root / "BinRushed/images/eye0-1.png")
    words = f"data crop --layout rigaplus --root {root} --out {out} --rater 2".split()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "such as images_eye0-1; expected names such as images_eye0-2" in error


def damaged(path):
    path.write_bytes(path.read_bytes()[:200])


def blank(path):
    Image.new("RGB", (96, 96)).save(path)


def called_by_a_byte(path):
    path.rename(path.with_name(os.fsdecode(b"g\xfcnther.png")))


@pytest.mark.parametrize("spoil", [damaged, blank, called_by_a_byte])
def test_one_photograph_that_cannot_be_cropped(tmp_path, capsys, spoil):
    "It is a line of the manifest with its error; the others are cropped, and the status says so."
    root, out = tmp_path / "root", tmp_path / "out"
    write_set(root, 3, 96, masks=False)
    spoil(root / "images" / "eye1.png")
    words = f"data crop --layout folder --root {root} --out {out} --side 64".split()
    assert main(words) == 3
    said = capsys.readouterr()
    assert "3 photographs found, 0 with masks" in said.out
    with open(out / "manifest.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    (error,) = [line["error"] for line in lines if line["error"]]
    assert len(lines) == 3 and " ".join(error.split()) in said.err
    assert sorted(p.name for p in (out / "images").iterdir()) == ["eye0.png", "eye2.png"]


def test_crops_of_which_none_can_be_made(tmp_path, capsys):
    root, out = tmp_path / "root", tmp_path / "out"
    write_set(root, 2, 96, masks=False)
    for name in ("eye0", "eye1"):
        blank(root / "images" / f"{name}.png")
    words = f"data crop --layout folder --root {root} --out {out} --side 64".split()
    assert main(words) == 2 and not out.exists()
    assert "eye0.png: the picture is dark" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["segment", "evaluate", "report"])
def test_what_a_folder_holds_is_told_first(model, tmp_path, capsys, command):
    "Which photographs are used, and how masks that do not tell themselves are to be read."
    folder, out = tmp_path / "set", tmp_path / "out.html"
    truth = write_set(folder, 3)
    rewrite(folder, truth, with_values((2, 1, 0)))
    words = [command, "--model", model, "--images", folder, "--out", out]
    given = [] if command == "segment" else ["--labels", "2,1,0"]
    assert main([str(w) for w in (*words, *given)]) == 0
    said = capsys.readouterr().out
    masked = 0 if command == "segment" else 3
    assert said.startswith(f"{folder}: 3 pictures found, 3 used, {masked} with masks")
    assert ("masks read as the given labels (3)" in said) == bool(masked)


def test_softened_masks_are_scored_with_a_threshold(model, tmp_path, capsys):
    folder, words = tmp_path / "set", ["evaluate", "--model", str(model)]
    rewrite(folder, write_set(folder, 3), smooth)
    words += ["--images", str(folder)]
    assert main(words) == 3 and "give threshold" in capsys.readouterr().err
    assert main([*words, "--threshold", "--labels", "0,128,255"]) == 0


def test_mask_names_and_folders_in_another_case(tmp_path):
    folder = tmp_path / "set"
    write_set(folder)
    mask = folder / "masks" / "eye1.png"
    mask.rename(mask.with_name("EYE1.png"))
    with pytest.raises(InputError, match="eye1.*found EYE1.png"):
        load_folder(folder, SIZE)
    (folder / "masks").rename(folder / "Masks")
    with pytest.raises(InputError, match="Masks: expected it to be called masks"):
        load_folder(folder, SIZE)


def test_masks_in_a_folder_of_another_name(tmp_path, caplog):
    "A set without masks says which folders it did not look into."
    write_set(tmp_path / "set")
    (tmp_path / "set/masks").rename(tmp_path / "set/labels")
    assert load_folder(tmp_path / "set", SIZE).masks is None
    assert "labels/" in caplog.text and "masks/" in caplog.text


# Identity is content


def profile_of(root, pool, test):
    from mfmda.study.profiles import load_profile

    sets = dict(clinic=dict(pool=f"folder:{pool}", test=f"folder:{test}"))
    return load_profile("smoke").replace(targets=sets, size=32)


def test_two_folders_with_the_same_names(tmp_path):
    "Other photographs of the same names are other photographs: none drops out of the test."
    from mfmda.study.pipeline import load_target

    pool, test = tmp_path / "pool", tmp_path / "test"
    write_set(pool, 12)
    write_set(test, 12, first=100)
    target = load_target(profile_of(tmp_path, pool, test), "clinic", 0)
    assert len(target.test) == 12 and len(target.rest) == 2


def test_a_shot_under_another_name_is_not_tested(tmp_path, caplog):
    "Of twelve test photographs ten are the shots, in another format and by other names."
    from mfmda.study.pipeline import load_target

    pool, test = tmp_path / "pool", tmp_path / "test"
    write_set(pool, 10)
    write_set(test, 12)
    for part in ("images", "masks"):
        for path in sorted((test / part).iterdir()):
            Image.open(path).save(path.with_name(f"patient_{path.stem}.tif"))
            path.unlink()
    target = load_target(profile_of(tmp_path, pool, test), "clinic", 0)
    assert sorted(target.test.ids) == ["patient_eye10", "patient_eye11"]
    assert "'patient_eye3' of test is 'eye3' of pool" in caplog.text


def copies(tmp_path, n=10):
    "A folder in which every photograph is there twice."
    folder = tmp_path / "copies"
    write_set(folder, n)
    for part in ("images", "masks"):
        for path in sorted((folder / part).iterdir()):
            shutil.copy(path, path.with_name(f"copy_of_{path.name}"))
    return folder


def photographs(dataset):
    return {image.numpy().tobytes() for image in dataset.images}


def test_copies_are_on_one_side_of_every_draw(tmp_path, caplog):
    "Shots and rest, training and validation, halves of a folder: no photograph is in both."
    folder = copies(tmp_path)
    whole = load_folder(folder, 32)
    assert "'eye0' and 'copy_of_eye0' are one photograph" in caplog.text
    halves = [load_set(f"folder:{folder}?{part}", 32) for part in ("to=.4", "from=.4")]
    draws = [few_shot(whole, 6, seed) for seed in range(4)]
    draws += [split(whole, (0.7, 0.3), seed) for seed in range(4)] + [halves]
    for a, b in draws:
        assert len(a) + len(b) == 10 and not photographs(a) & photographs(b)


def test_a_training_photograph_is_not_tested(tmp_path):
    "The source's test set loses what was trained on, under whichever name."
    from mfmda.study.pipeline import load_source
    from mfmda.study.profiles import load_profile

    train, test = tmp_path / "train", tmp_path / "test"
    write_set(train, 10)
    write_set(test, 4, first=8)
    sets = dict(name="home", train=f"folder:{train}", test=f"folder:{test}")
    source = load_source(load_profile("smoke").replace(source=sets, size=32))
    assert source.test.ids == ["eye2", "eye3"]


# A target's labels are nobody's business


def spoil_one(masks):
    Image.new("L", (9, 9), 77).save(masks / "eye1.png")


def lose_some(masks):
    (masks / "eye0.png").unlink()
    (masks / "eye2.png").unlink()


def lose_all(masks):
    for path in masks.iterdir():
        path.unlink()


def add_one(masks):
    shutil.copy(masks / "eye0.png", masks / "nobody.png")


def add_half_a_pair(masks):
    (masks.parent / "masks_cup").mkdir()


def add_a_format(masks):
    np.save(masks / "eye1.npy", np.zeros(3))
    (masks / "eye1.png").unlink()


SPOILED = [spoil_one, lose_some, lose_all, add_one, add_half_a_pair, add_a_format]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run of `adapt` with a step of each training."
    from mfmda.study.profiles import load_profile
    from mfmda.use.camera import adapt

    quick = load_profile("smoke").replace(
        foundation=dict(candidates=["efficientnet_lite0"], image_size=32),
        ddpm=dict(steps=2),
        fusion=dict(steps=1),
        adapt=dict(steps=1, score_every=1, score_images=2, batch=2),
        segment=dict(steps=2),
    )
    home = load_phantoms("phantom_a", 1, 0, 12, quick.size)
    away = load_phantoms("phantom_b", 1, 900, 3, quick.size)
    folder = tmp_path_factory.mktemp("run") / "run"
    adapt(home, away, quick, folder)
    return folder


class Stopped(Exception):
    "Every check was passed, training would begin."


@pytest.mark.parametrize("spoil", SPOILED)
def test_adapt_leaves_a_targets_masks_alone(tmp_path, monkeypatch, spoil):
    from mfmda.use import camera

    def stop(*_, **__):
        raise Stopped

    monkeypatch.setattr(camera, "fit_to_time", stop)
    write_set(tmp_path / "home", 10)
    write_set(tmp_path / "clinic", 4, first=50)
    spoil(tmp_path / "clinic" / "masks")
    said = []
    with pytest.raises(Stopped):
        out = tmp_path / "run"
        camera.adapt(tmp_path / "home", tmp_path / "clinic", "smoke", out, say=said.append)
    assert any("masks/" in line and "needs no labels" in line for line in said)


@pytest.mark.parametrize("spoil", SPOILED)
def test_translate_and_report_go_on_without_such_masks(tmp_path, run, caplog, spoil):
    "All photographs are there; that masks are not used is said, unless all could be."
    clinic = tmp_path / "clinic"
    write_set(clinic, 4, first=50)
    spoil(clinic / "masks")
    moved, page = tmp_path / "moved", tmp_path / "report.html"
    words = ["translate", "--run", run, "--images", clinic, "--out", moved]
    assert main(list(map(str, words))) == 0
    assert len(list((moved / "images").iterdir())) == 4
    words = ["report", "--model", run, "--images", clinic, "--out", page]
    assert main(list(map(str, words))) == 0
    assert page.exists()
    if spoil is not add_one:
        assert "their regions were found by" in caplog.text
        assert "they are not scored" in caplog.text


# What a scan tells


def test_a_scan_of_a_folder_with_every_fault(tmp_path):
    "Nothing stops it: what is used, what is not and why, copies, and masks that differ."
    folder = tmp_path / "set"
    truth = write_set(folder, 8)
    images, masks = folder / "images", folder / "masks"
    as_heic(images / "eye0.png")
    in_a_subfolder(images / "eye1.png")
    (images / "notes.txt").write_text("seen on Monday")
    (masks / "eye2.png").unlink()
    with_values((2, 1, 0))(masks / "eye3.png", truth["eye3"])
    with_values((255, 128, 0))(masks / "eye4.png", truth["eye4"])
    (masks / "eye5.png").write_bytes((masks / "eye5.png").read_bytes()[:30])
    shutil.copy(images / "eye6.png", folder / "beside.png")
    shutil.copy(images / "eye7.png", images / "again.png")
    shutil.copy(masks / "eye6.png", masks / "again.png")
    scan = scan_folder(folder)
    assert sorted(x.name for x in scan.used) == "again eye0 eye1 eye4 eye6 eye7".split()
    faults = dict(heic="not read", left="subfolder", beside="beside images/", eye2="no mask")
    faults |= dict(eye3="give labels=2,1,0", eye5="cannot be decoded")
    assert len(scan.refused) == len(faults)
    for name, why in faults.items():
        assert any(name in said and why in said for said in scan.refused), name
    assert scan.odd == ["eye4: read as REFUGE, most as native"]
    assert scan.doubles == ["again, eye7 (their masks differ)"]
    assert scan.skipped == ["images/notes.txt"]
    told = "\n".join(in_words(scan))
    assert "12 pictures found, 6 used, 6 with masks" in told and "48×48 (6)" in told
    json.dumps(scan.as_dict())


def test_a_scan_of_masks_that_nobody_asked_for(tmp_path):
    "Of a target the masks are not looked at."
    write_set(tmp_path / "clinic", 4)
    spoil_one(tmp_path / "clinic" / "masks")
    assert scan_folder(tmp_path / "clinic", masked=False).refused == []
    assert len(scan_folder(tmp_path / "clinic").refused) == 1


def test_photographs_that_source_and_target_share(tmp_path):
    "By content: other names do not hide one, the same names do not make one."
    write_set(tmp_path / "home", 4)
    write_set(tmp_path / "clinic", 4, first=3, masks=False)
    home, clinic = scan_folder(tmp_path / "home"), scan_folder(tmp_path / "clinic")
    assert shared(home, clinic) == [("eye3", "eye0")]


# Folders that are drawn


def ellipse(y, x, radius, squeeze):
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    return ((rows - y) / squeeze) ** 2 + (columns - x) ** 2 < radius**2


@st.composite
def discs_and_cups(draw):
    "Labels (SIZE, SIZE) of a disc with its cup, which may touch the disc's edge."
    radius = draw(st.floats(9, 17))
    y, x = (SIZE / 2 + draw(st.floats(-4, 4)) for _ in "yx")
    cup = radius * draw(st.floats(0.3, 0.75))
    angle, out = draw(st.floats(0, 6.3)), draw(st.floats(0, 0.9)) * (radius - cup)
    squeeze = draw(st.floats(0.85, 1.15))
    disc = ellipse(y, x, radius, squeeze)
    at = y + out * np.sin(angle) * squeeze, x + out * np.cos(angle)
    return disc.astype(np.uint8) + (disc & ellipse(*at, cup, squeeze))


@st.composite
def trees(draw):
    "Labels (SIZE, SIZE) of a few vessels that reach the border."
    labels = np.zeros((SIZE, SIZE), np.uint8)
    for _ in range(draw(st.integers(1, 3))):
        a, b = draw(st.integers(2, SIZE - 5)), draw(st.integers(2, SIZE - 5))
        for t, column in enumerate(range(SIZE)):
            row = round(a + (b - a) * t / SIZE)
            labels[row : row + draw(st.just(2)), column] = 1
    return labels.T.copy() if draw(st.booleans()) else labels


VALUES = st.one_of(
    st.permutations((0, 1, 2)),
    st.permutations((0, 128, 255)),
    st.lists(st.integers(0, 255), min_size=3, max_size=3, unique=True),
)
KINDS = ["grey", "grey", "16 bits", "32 bits", "rgb", "palette", "grey palette", "smooth"]
ENDINGS = [".png", ".png", ".bmp", ".tif", ".tiff", ".PNG", ".jpg", ".gif", ".webp"]
NAMES = st.text("aB1é_-. ü眼", min_size=1, max_size=9)
FAULTS = [None] * 8 + ["case", "lost", "twin", "subfolder", "cut", "size", "copy"]


@dataclass
class Drawn:
    "How a program might have written the masks of a folder, and what went wrong with one."

    kind: str  # how labels become pixels
    table: list  # values of background and labels
    ending: str
    fault: str | None
    colours: list  # of a palette

    def save(self, labels, path):
        "One mask; False where the format has no such way."
        try:
            self.picture(labels).save(path)
        except (OSError, ValueError, KeyError):
            return False
        return True

    def picture(self, labels):
        if self.kind == "grey palette":
            greys = [[value] * 3 for value in self.table]
            return with_colours(labels, range(len(greys)), greys)
        values = np.array(self.table)[labels]
        if self.kind == "palette":
            return with_colours(values.astype(np.uint8), self.table, self.colours)
        bits = {"16 bits": np.uint16, "32 bits": np.int32}.get(self.kind, np.uint8)
        picture = Image.fromarray(values.astype(bits))
        if self.kind == "smooth":
            return picture.resize((3 * SIZE,) * 2).resize((SIZE,) * 2)
        return picture.convert("RGB") if self.kind == "rgb" else picture


@st.composite
def ways(draw, task):
    table = draw(VALUES)
    if len(task.regions) == 1:
        table = table[:2]
    elif not task.nested:  # which of two regions is which, no picture tells
        table = [table[0], *sorted(table[1:])]
    choices = [st.sampled_from(some) for some in (KINDS, ENDINGS, FAULTS)]
    kind, ending, fault = draw(st.tuples(*choices))
    return Drawn(kind, table, ending, fault, draw(st.permutations((RED, GREEN, BLUE))))


@st.composite
def eyes(draw, task):
    "Names that are different everywhere, each with its labels."
    names = draw(st.lists(NAMES, min_size=1, max_size=3))
    names = [name.strip(" .") for name in names]
    assume(all(names) and len({name.casefold() for name in names}) == len(names))
    labels = trees() if len(task.regions) == 1 else discs_and_cups()
    return {name: draw(labels) for name in names}


def write_drawn(folder, truth, way):
    "The folder as it was drawn; `truth` gains what a copy adds."
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for name, labels in truth.items():
        pixels = rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
        mask = folder / "masks" / f"{name}{way.ending}"
        assume(way.save(labels, mask))
    assume(way.fault != "case" or name != name.swapcase())
    spoil_folder(way.fault, folder, name, mask)
    if way.fault == "copy":
        shutil.copy(folder / "images" / f"{name}.png", folder / "images" / "zz copy.png")
        shutil.copy(mask, folder / "masks" / f"zz copy{way.ending}")
        truth["zz copy"] = truth[name]


def spoil_folder(fault, folder, name, mask):
    "Do what people do to one photograph and its mask; the name must then be told."
    image = folder / "images" / f"{name}.png"
    if fault == "case":
        mask.rename(mask.with_name(name.swapcase() + mask.suffix))
    elif fault == "lost":
        mask.unlink()
    elif fault == "twin":
        Image.open(image).save(image.with_suffix(".tif"))
    elif fault == "subfolder":
        (folder / "images" / "sub").mkdir()
        image.rename(folder / "images" / "sub" / image.name)
    elif fault == "cut":
        mask.write_bytes(mask.read_bytes()[:-20])
    elif fault == "size":
        Image.new("RGB", (SIZE + 1,) * 2).save(image)


EACH = dict(deadline=None, derandomize=True, database=None)
EACH |= dict(suppress_health_check=list(HealthCheck))


TASKS = {"disc and cup": DISC_CUP, "vessel": VESSELS, "rim and cup": Task(("rim", "cup"))}


@pytest.mark.parametrize("name", TASKS)
def test_drawn_folders(tmp_path_factory, record, name):
    "Labels come out right, or a file of the folder is named."
    task, seen = TASKS[name], Counter()

    @settings(max_examples=ceil(EXAMPLES / len(TASKS)), **EACH)
    @given(eyes(task), ways(task))
    def attempt(truth, way):
        folder = tmp_path_factory.mktemp("drawn") / "set"
        write_drawn(folder, truth, way)
        said = named_or_right(folder, truth, task)
        seen["right" if said is None else "named"] += 1
        if said is None:
            assert way.fault in (None, "copy")
        else:
            told = [*truth, str(folder / "masks: ")] if way.fault == "lost" else truth
            assert any(name.casefold() in said.casefold() for name in told), said
        if way.fault not in ("twin", "subfolder"):  # after which there may be nothing to scan
            scan = scan_folder(folder, task)
            assert bool(scan.refused) == (said is not None), (said, scan.refused)
            assert bool(scan.doubles) == (way.fault == "copy")
        shutil.rmtree(folder)

    logging.disable(logging.WARNING)
    try:
        attempt()
    finally:
        logging.disable(logging.NOTSET)
    assert seen["right"] and seen["named"], seen
    record(test="drawn folders", of=name, **seen)
