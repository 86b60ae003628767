"""What the package brings was trained as its records say: the beginning is repeated.

MFMDA_PRETRAIN_SHARE is the share of both trainings that is repeated, .01 unless it is given.
"""

import os

import numpy as np
import pytest

from mfmda.core.files import fingerprint, read_json
from mfmda.core.training import RunOptions
from mfmda.stage1.ddpm import train_ddpm
from mfmda.stage1.shipped import WEIGHTS, load_shipped_ddpm, shipped_folder
from mfmda.stage2.foundation import build_foundation
from mfmda.stage2.mae import load_shipped_mae, pretrain_mae
from mfmda.stage2.settings import MaeSettings
from mfmda.study.pipeline import is_shipped, load_source, pretraining_views
from mfmda.study.profiles import load_profile

SHARE = float(os.environ.get("MFMDA_PRETRAIN_SHARE", "0.01"))
# bfloat16 rounds differently from one processor to the next, and a training amplifies it
TOLERANCE = 0.1


def record_of(name):
    return read_json(shipped_folder(name) / "record.json")


def compare(again, recorded):
    "Losses of a repeated beginning, beside the recorded ones of the same updates."
    ours, theirs = ([h["loss"] for h in log[: len(again)]] for log in (again, recorded))
    assert len(ours) == len(theirs) > 10
    assert ours[0] == pytest.approx(theirs[0], rel=0.01)
    last = max(len(ours) // 4, 4)
    assert np.mean(ours[-last:]) == pytest.approx(np.mean(theirs[-last:]), rel=TOLERANCE)
    assert np.mean(ours[-last:]) < 0.8 * ours[0]


def test_the_diffusion_model_begins_as_recorded():
    record, profile = record_of("ddpm_phantom"), load_profile("mini")
    images = load_source(profile).train.images
    assert record["images"] == fingerprint(images)
    settings = profile.ddpm
    run = RunOptions(precision="bf16", device="cpu", until=int(SHARE * settings.steps))
    compare(train_ddpm(images, settings, run)[1], record["history"])


def test_the_foundation_model_begins_as_recorded():
    record, settings = record_of("vit_phantom"), MaeSettings()
    assert record["mae"] == settings.model_dump()
    images = pretraining_views(record["eyes"], settings.image_size)
    assert record["images"] == fingerprint(images)
    run = RunOptions(precision="bf16", device="cpu", until=int(SHARE * settings.steps))
    compare(pretrain_mae(images, settings, run)[1], record["history"])


def test_profiles_of_phantoms_take_both_models():
    for name in ("mini", "mini3", "quick"):
        profile = load_profile(name)
        assert is_shipped(profile, load_source(profile).train.images)
    assert load_shipped_ddpm("ddpm_phantom").unet.config.sample_size == 48
    assert build_foundation("vit_phantom").description["loaded"] > 90
    assert load_shipped_mae().settings.grid >= 12


def test_the_weights_are_small():
    files = [file for file in WEIGHTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 15e6
