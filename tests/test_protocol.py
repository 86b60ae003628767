"""One protocol for every score: the command gives the numbers of a table's row."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mfmda.core.files import data_root, fingerprint, read_json, write_json
from mfmda.data.sets import load_folder, load_set
from mfmda.stage1.shipped import shipped_folder
from mfmda.study.metrics import COLUMNS
from mfmda.study.pipeline import (
    Job,
    load_source,
    load_target,
    per_image_rows,
    run_options,
    train_row,
)
from mfmda.study.profiles import Layout, load_profile
from mfmda.use.cli import main

root = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def row(tmp_path_factory):
    "A row of Table 1 as step 5 trains and scores it, and its test set as a user's folder."
    box = tmp_path_factory.mktemp("row")
    profile = load_profile("smoke").replace(segment=dict(steps=25, lr=1e-2))
    source, target = load_source(profile), load_target(profile, "phantom_b", 0)
    layout = Layout("smoke", box)
    write_json(layout.foundation(0) / "result.json", dict(chosen="efficientnet_lite0"))
    job = Job(profile, layout, source, target, 0)
    segmenter = train_row(job, "mfm_reinhard", "reinhard", box)
    segmenter.save_pretrained(box / "mfm_reinhard")
    test = target.test
    pictures = dict(images=test.images.permute(0, 2, 3, 1).numpy(), masks=test.stored_masks)
    for kind, each in pictures.items():
        (box / "test" / kind).mkdir(parents=True)
        for name, pixels in zip(test.ids, each):
            Image.fromarray(np.asarray(pixels)).save(box / "test" / kind / f"{name}.png")
    scores = per_image_rows(segmenter, test, "phantom_a", "phantom_b", "mfm_reinhard", 0)
    return box, scores.set_index("image")


def test_evaluate_gives_the_numbers_of_the_row_to_the_last_digit(row, capsys):
    box, scores = row
    command = ["evaluate", "--model", str(box / "mfm_reinhard"), "--images", str(box / "test")]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["images"]) == len(scores) == 12
    for line in told["images"]:
        for column in COLUMNS:
            assert line[column] == scores.loc[line["image"], column], (line["image"], column)
    for column in COLUMNS:
        mean = told["means"][column]["mean"]
        assert mean == pytest.approx(scores[column].mean(), abs=1e-12)


def test_the_rows_scores_tell_images_apart_so_that_equality_means_something(row):
    _, scores = row
    assert scores.cup_dice.nunique() > 6 and 0.1 < scores.disc_dice.mean() < 1


def test_segment_writes_masks_that_are_made_for_use(row):
    "Mirror images are averaged and the cup lies in its disc, which scores do not ask for."
    box, _ = row
    command = ["segment", "--model", str(box / "mfm_reinhard"), "--out", str(box / "masks")]
    assert main([*command, "--images", str(box / "test")]) == 0
    made = sorted((box / "masks" / "masks").iterdir())
    assert len(made) == 12 and {int(v) for f in made for v in np.unique(Image.open(f))} <= {
        0,
        1,
        2,
    }
    assert load_folder(box / "test", 32).ids == [f.stem for f in made]


def crop_sets(profile):
    "The names of the crop sets whose images a profile scores."
    named = [profile.source.test, *(sets.test for sets in profile.targets.values())]
    return {name.partition(":")[2].partition("?")[0] for name in named if name}


@pytest.mark.skipif(data_root() is None, reason="no crops here, see MFMDA_DATA")
def test_development_shifts_show_held_out_eyes_that_no_table_scores():
    development = load_profile("dev64")
    held_out = set(load_source(development).validation.ids)
    for sets in development.targets.values():
        pool, test = load_set(sets.pool, 64), load_set(sets.test, 64)
        assert set(pool.ids) | set(test.ids) <= held_out
        assert not set(pool.ids) & set(test.ids) and "crops:refuge_val?" in sets.test
        for table in ("real64", "real64_back"):
            assert "refuge_val" not in crop_sets(load_profile(table))


def test_no_validation_image_entered_a_source_model():
    "Neither the smoke run's, whose checkpoint is bound to its images, nor the package's."
    smoke, mini = load_profile("smoke"), load_profile("mini")
    record = read_json(shipped_folder("ddpm_phantom") / "record.json")
    assert record["images"] == fingerprint(load_source(mini).train.images)
    for profile in (smoke, mini):
        source = load_source(profile)
        parts = (source.train, source.validation)
        kept, held_out = ({fingerprint(x) for x in part.images} for part in parts)
        assert len(kept) == len(source.train) and not kept & held_out
    folder = Layout("smoke", root).source_ddpm()
    if not (folder / "ddpm.pt").exists():
        pytest.skip("no smoke run under runs/: the smoke stage of `make test` makes one")
    source, run = load_source(smoke), run_options(smoke, 0)
    known = smoke.ddpm.of_training()
    images = fingerprint(source.train.images)
    key = fingerprint(((), known, run.precision, images), run.seed, smoke.ddpm.steps)
    assert torch.load(folder / "ddpm.pt", weights_only=True)["key"] == key
    told = read_json(folder / "result.json")
    assert told["train_ids"] == source.train.ids
    assert not set(told["train_ids"]) & set(told["validation_ids"])
