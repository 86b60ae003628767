"""Result files: whole, consistent, and each number in a table is the mean of its per-image rows."""

import csv
import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from scipy import stats

from mfmda.core.files import data_root
from mfmda.study.profiles import load_profile, profile_names

FIGURES = Path(__file__).resolve().parents[1] / "figures"
ALL = [name for name in profile_names() if (FIGURES / name / "run.json").exists()]
# the others are translations alone
PROFILES = [p for p in ALL if all(t.test for t in load_profile(p).targets.values())]
# rows of every run; those of later versions have more
METHODS = """unet_source unet_adabn unet_tent mfm_source mfm_adabn mfm_tent mfm_reinhard mfm_fda
    mfm_da_paper mfm_da oracle""".split()
COLUMNS = """source target method seed image disc_dice cup_dice disc_iou cup_iou
    disc_hd95 cup_hd95 disc_assd cup_assd vcdr_error""".split()

if not ALL:
    pytest.skip(
        "no results under figures/: run `make reproduce` or the smoke stage of `make test` first",
        allow_module_level=True,
    )
of_each_profile = pytest.mark.parametrize("profile", ALL)
of_each_scored_profile = pytest.mark.parametrize("profile", PROFILES)


def rows_of(profile, name="per_image"):
    with open(FIGURES / profile / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def record_of(profile):
    return json.loads((FIGURES / profile / "run.json").read_text())


def seeds_of(profile):
    "The seeds of the run that left these files: a profile may ask for more by now."
    return record_of(profile)["seeds"]


def mean(values):
    return math.fsum(values) / len(values)


def by_image(rows, score):
    "method -> image -> mean over seeds (and targets) of a score."
    found = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["method"]][row["image"]].append(score(row))
    return {m: {i: mean(of) for i, of in images.items()} for m, images in found.items()}


def cup_dice(row):
    return float(row["cup_dice"])


def mean_dice(row):
    return (float(row["disc_dice"]) + float(row["cup_dice"])) / 2


@of_each_scored_profile
def test_every_method_was_scored_on_the_same_images(profile):
    images = defaultdict(set)
    for r in rows_of(profile):
        images[r["target"], int(r["seed"]), r["method"]].add(r["image"])
    for target in load_profile(profile).targets:
        found = {method for where, _, method in images if where == target}
        assert found >= set(METHODS)
        for seed in seeds_of(profile):
            expected = images[target, seed, "oracle"]
            assert expected
            for method in found:
                assert images[target, seed, method] == expected, (target, seed, method)


@of_each_scored_profile
def test_gains_are_the_difference_from_the_better_source_only_row(profile):
    if not (FIGURES / profile / "gains.csv").exists():
        pytest.skip(f"the run of {profile} is older than the file of gains")
    table = {(r["target"], r["method"]): r for r in rows_of(profile, "table1")}

    def dice(target, method):
        row = table[target, method]
        return [float(row[f"{region}_dice_mean"]) for region in ("disc", "cup")]

    for row in rows_of(profile, "gains"):
        target, first = row["target"], row["baseline"]
        known = [m for t, m in table if t == target and m.startswith("mfm_source")]
        assert max(sum(dice(target, m)) for m in known) <= sum(dice(target, first)) + 1e-6
        region = ("disc", "cup").index(row["region"])
        gain = dice(target, row["method"])[region] - dice(target, first)[region]
        assert math.isclose(float(row["difference"]), gain, abs_tol=3e-6)
        assert float(row["low"]) <= float(row["difference"]) <= float(row["high"])


@of_each_scored_profile
def test_rows_are_unique_and_scores_possible(profile):
    rows = rows_of(profile)
    valid = ["valid"] if "valid" in rows[0] else []  # runs of before this column lack it
    assert list(rows[0]) == COLUMNS + valid
    assert all(row["valid"] in ("0", "1") for row in rows if valid)
    keys = {tuple(row[c] for c in COLUMNS[:5]) for row in rows}
    assert len(keys) == len(rows)
    for row in rows:
        scores = {c: float(row[c]) for c in COLUMNS[5:]}
        assert all(0 <= x <= 1 for c, x in scores.items() if c.endswith(("dice", "iou")))
        assert all(x >= 0 for c, x in scores.items() if c.endswith(("hd95", "assd")))
        dice, iou = scores["disc_dice"], scores["disc_iou"]
        assert math.isclose(dice, 2 * iou / (1 + iou), abs_tol=1e-5)


@of_each_scored_profile
def test_table_cells_are_means_of_their_rows(profile):
    groups = defaultdict(lambda: defaultdict(list))
    for r in rows_of(profile):
        groups[r["source"], r["target"], r["method"]][r["seed"]].append(r)
    table = rows_of(profile, "table1")
    assert {(r["source"], r["target"], r["method"]) for r in table} == set(groups)
    text = (FIGURES / profile / "table1.md").read_text()
    for cell in table:
        seeds = groups[cell["source"], cell["target"], cell["method"]].values()
        for measure in ("disc_dice", "cup_dice", "disc_hd95", "cup_hd95"):
            expected = mean([mean([float(r[measure]) for r in rows]) for rows in seeds])
            assert math.isclose(float(cell[f"{measure}_mean"]), expected, abs_tol=2e-6)
            if cell["target"] in load_profile(profile).targets and measure == "disc_dice":
                printed = f"{expected:.3f}".lstrip("0")
                assert printed in text, (
                    f"{cell['method']} on {cell['target']}: not in table1.md"
                )


@of_each_scored_profile
def test_intervals_are_what_scipy_alone_makes_of_the_rows(profile):
    target = next(iter(load_profile(profile).targets))
    rows = [r for r in rows_of(profile) if r["target"] == target]
    ours = list(by_image(rows, cup_dice)["mfm_da"].values())
    where = (target, "mfm_da")
    table = {(r["target"], r["method"]): r for r in rows_of(profile, "table1")}
    cell = {k: float(table[where][f"cup_dice_{k}"]) for k in ("mean", "low", "high")}
    assert math.isclose(cell["mean"], stats.tmean(ours), abs_tol=2e-6)
    options = dict(n_resamples=2000, method="percentile", vectorized=False, rng=1)
    low, high = stats.bootstrap((ours,), statistics.fmean, **options).confidence_interval
    near = 0.15 * (high - low) + 2e-6
    assert abs(cell["low"] - low) <= near and abs(cell["high"] - high) <= near


@of_each_scored_profile
def test_p_values_are_what_scipy_alone_makes_of_the_rows(profile):
    target = next(iter(load_profile(profile).targets))
    rows = [r for r in rows_of(profile) if r["target"] == target]
    scores = by_image(rows, cup_dice)
    images = sorted(scores["mfm_da"])
    paired = rows_of(profile, "paired")
    for row in paired:
        if (row["target"], row["region"]) != (target, "cup"):
            continue
        ours, theirs = ([scores[m][i] for i in images] for m in ("mfm_da", row["against"]))
        if ours != theirs:
            p = stats.wilcoxon(ours, theirs).pvalue
            assert math.isclose(float(row["p"]), p, rel_tol=1e-3, abs_tol=1e-6)
    pairs = sorted((float(r["p"]), float(r["p_holm"])) for r in paired)
    corrected = [p_holm for _, p_holm in pairs]
    assert corrected == sorted(corrected)
    assert math.isclose(corrected[0], min(1, len(pairs) * pairs[0][0]), abs_tol=1e-4)


@of_each_profile
def test_every_run_says_where_it_comes_from(profile):
    text = json.dumps(record_of(profile))
    words = """commit versions data_fingerprint wall_s peak_memory_mb shots torch seed"""
    for word in words.split():
        assert f'"{word}' in text, f"run.json lacks {word}"


@of_each_profile
def test_pictures_can_be_opened(profile):
    names = ["fig3", "fig4_translation"]
    if profile in PROFILES:
        names += ["fig1", "fig2", "fig5_intervals", "fig6_gains", "fig7_failures", "fig8_ranks"]
    for name in names:
        with Image.open(FIGURES / profile / f"{name}.png") as picture:
            assert min(picture.size) > 200
            greys = set(picture.convert("L").resize((32, 32)).tobytes())
            assert len(greys) > 8  # not an empty canvas
        root = ElementTree.parse(FIGURES / profile / f"{name}.svg").getroot()
        assert root.tag.endswith("svg")


@of_each_profile
def test_translation_scores_by_step(profile):
    rows = rows_of(profile, "translation")
    assert {r["target"] for r in rows} == set(load_profile(profile).targets)
    for row in rows:  # the source images themselves have no step
        assert (row["step"] == "") == (row["images"] == "untranslated")
        for column in ("disc_kept", "cup_kept", "target_distance", "style_distance"):
            assert math.isfinite(float(row[column]))


@of_each_scored_profile
def test_no_shot_is_scored(profile):
    from mfmda.study.pipeline import load_target

    settings = load_profile(profile)
    if settings.source.train.startswith("crops") and data_root() is None:
        pytest.skip("the photographs are not here")
    scored = defaultdict(set)
    for row in rows_of(profile):
        scored[row["target"], int(row["seed"])].add(row["image"])
    for target in settings.targets:
        for seed in seeds_of(profile):
            shots = set(load_target(settings, target, seed).shots.ids)
            assert len(shots) == settings.few_shot
            assert not shots & scored[target, seed]


@of_each_scored_profile
def test_further_rows_are_the_difference_of_their_rows(profile):
    if not (FIGURES / profile / "table2.csv").exists():
        pytest.skip(f"no further row was run with profile {profile}")
    scored = rows_of(profile) + rows_of(profile, "per_image_further")
    for line in rows_of(profile, "table2"):
        # the row may have been run with some of the seeds alone
        runs = {(r["target"], r["seed"]) for r in scored if r["method"] == line["row"]}
        dice = by_image([r for r in scored if (r["target"], r["seed"]) in runs], mean_dice)
        mine, theirs = dice[line["row"]], dice[line["against"]]
        assert set(mine) == set(theirs) and len(mine) == int(line["n"])
        difference, low, high = (float(line[k]) for k in ("difference", "low", "high"))
        gains = [mine[i] - theirs[i] for i in mine]
        assert math.isclose(difference, stats.tmean(gains), abs_tol=3e-6)
        assert low <= difference <= high
