"""Result files: whole, consistent with each other, and each number in the table is the mean of its per-image rows."""
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

from mfmda.config import PROFILES as KNOWN, load_profile

FIGURES = Path(__file__).resolve().parents[1] / "figures"
ALL = sorted(folder.name for folder in FIGURES.iterdir() if folder.name in KNOWN and (folder / "run.json").exists()) if FIGURES.exists() else []
PROFILES = [p for p in ALL if all("test" in target for target in load_profile(p).targets.values())]   # the others are translations alone
METHODS = {"unet_source", "unet_adabn", "unet_tent", "mfm_source", "mfm_adabn", "mfm_tent", "mfm_reinhard", "mfm_fda", "mfm_da_paper", "mfm_da", "oracle"}
COLUMNS = ("source,target,method,seed,image,disc_dice,cup_dice,disc_iou,cup_iou,disc_hd95,cup_hd95,disc_assd,cup_assd,vcdr_error").split(",")

if not ALL:
    pytest.skip("no results under figures/: run `make reproduce` or the smoke stage of `make test` first", allow_module_level=True)


def rows_of(profile, name="per_image"):
    with open(FIGURES / profile / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def seeds_of(profile):
    "The seeds of the run that left these files: a profile may ask for more by now."
    return json.loads((FIGURES / profile / "run.json").read_text())["seeds"]


@pytest.mark.parametrize("profile", PROFILES)
def test_per_image_rows_are_complete(profile):
    rows, settings = rows_of(profile), load_profile(profile)
    assert list(rows[0]) == COLUMNS
    keys = [(r["source"], r["target"], r["method"], r["seed"], r["image"]) for r in rows]
    assert len(keys) == len(set(keys))
    for target in settings.targets:
        for seed in seeds_of(profile):
            images = {m: {r["image"] for r in rows if (r["target"], r["method"], r["seed"]) == (target, m, str(seed))} for m in METHODS}
            assert images["oracle"] and all(found == images["oracle"] for found in images.values()), f"{target}, seed {seed}: methods were scored on different images"
    for row in rows:
        assert all(0 <= float(row[c]) <= 1 for c in COLUMNS if c.endswith(("dice", "iou")))
        assert all(float(row[c]) >= 0 for c in COLUMNS if c.endswith(("hd95", "assd")))
        dice, iou = float(row["disc_dice"]), float(row["disc_iou"])
        assert math.isclose(dice, 2 * iou / (1 + iou), abs_tol=1e-5)


@pytest.mark.parametrize("profile", PROFILES)
def test_table_cells_are_means_of_their_rows(profile):
    groups = defaultdict(lambda: defaultdict(list))
    for r in rows_of(profile):
        groups[r["source"], r["target"], r["method"]][r["seed"]].append(r)
    table = rows_of(profile, "table1")
    assert {(r["source"], r["target"], r["method"]) for r in table} == set(groups)
    text = (FIGURES / profile / "table1.md").read_text()
    for cell in table:
        seeds = groups[cell["source"], cell["target"], cell["method"]]
        for measure in ("disc_dice", "cup_dice", "disc_hd95", "cup_hd95"):
            means = [math.fsum(float(r[measure]) for r in rows) / len(rows) for rows in seeds.values()]
            mean = math.fsum(means) / len(means)
            assert math.isclose(float(cell[f"{measure}_mean"]), mean, abs_tol=2e-6)
            if cell["target"] in load_profile(profile).targets and measure == "disc_dice":
                assert f"{mean:.3f}".lstrip("0") in text, f"{cell['method']} on {cell['target']}: {mean:.3f} is not in table1.md"


@pytest.mark.parametrize("profile", PROFILES)
def test_statistics_are_what_scipy_alone_makes_of_the_rows(profile):
    rows, target = rows_of(profile), next(iter(load_profile(profile).targets))
    scores = defaultdict(lambda: defaultdict(list))
    for r in rows:
        if r["target"] == target:
            scores[r["method"]][r["image"]].append(float(r["cup_dice"]))
    images = sorted(scores["mfm_da"])
    means = {method: [math.fsum(of[i]) / len(of[i]) for i in images] for method, of in scores.items()}
    cell = next(r for r in rows_of(profile, "table1") if (r["target"], r["method"]) == (target, "mfm_da"))
    assert math.isclose(float(cell["cup_dice_mean"]), stats.tmean(means["mfm_da"]), abs_tol=2e-6)
    interval = stats.bootstrap((means["mfm_da"],), statistics.fmean, n_resamples=2000, method="percentile", vectorized=False, rng=1).confidence_interval
    width = interval.high - interval.low
    assert abs(float(cell["cup_dice_low"]) - interval.low) <= .15 * width + 2e-6 and abs(float(cell["cup_dice_high"]) - interval.high) <= .15 * width + 2e-6
    paired = rows_of(profile, "paired")
    for row in paired:
        if (row["target"], row["region"]) == (target, "cup") and means[row["against"]] != means["mfm_da"]:
            assert math.isclose(float(row["p"]), stats.wilcoxon(means["mfm_da"], means[row["against"]]).pvalue, rel_tol=1e-3, abs_tol=1e-6)
    corrected = [float(r["p_holm"]) for r in sorted(paired, key=lambda r: (float(r["p"]), float(r["p_holm"])))]
    assert corrected == sorted(corrected) and math.isclose(corrected[0], min(1, len(paired) * min(float(r["p"]) for r in paired)), abs_tol=1e-4)


@pytest.mark.parametrize("profile", ALL)
def test_every_run_says_where_it_comes_from(profile):
    run = json.loads((FIGURES / profile / "run.json").read_text())
    text = json.dumps(run)
    for word in ("commit", "versions", "data_fingerprint", "wall_s", "peak_memory_mb", "shots", "torch", "seed"):
        assert f'"{word}' in text, f"run.json lacks {word}"


@pytest.mark.parametrize("profile", ALL)
def test_pictures_can_be_opened(profile):
    for name in ("fig3", "fig4_translation", *(("fig1", "fig2", "fig5_intervals", "fig6_gains", "fig8_failures", "fig9_ranks") if profile in PROFILES else ())):
        with Image.open(FIGURES / profile / f"{name}.png") as picture:
            assert min(picture.size) > 200 and len(set(picture.convert("L").resize((32, 32)).tobytes())) > 8   # not an empty canvas
        assert ElementTree.parse(FIGURES / profile / f"{name}.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize("profile", ALL)
def test_translation_scores_by_step(profile):
    rows = rows_of(profile, "translation")
    assert {r["target"] for r in rows} == set(load_profile(profile).targets)
    assert all((r["step"] == "") == (r["images"] == "untranslated") for r in rows)   # the source images themselves have no step
    for column in ("disc_kept", "cup_kept", "target_distance", "style_distance"):
        assert all(math.isfinite(float(r[column])) for r in rows)


def test_no_shot_is_scored():
    from mfmda.pipeline import load_target
    from mfmda.config import data_root
    for profile in PROFILES:
        settings = load_profile(profile)
        if settings.source["train"].startswith("crops") and data_root() is None:
            continue
        for target in settings.targets:
            for seed in seeds_of(profile):
                shots = set(load_target(settings, target, seed).shots.ids)
                scored = {r["image"] for r in rows_of(profile) if r["target"] == target and r["seed"] == str(seed)}
                assert len(shots) == settings.few_shot and not shots & scored


@pytest.mark.parametrize("profile", PROFILES)
def test_further_rows_are_the_difference_of_their_rows(profile):
    if not (FIGURES / profile / "table2.csv").exists():
        pytest.skip(f"no further row was run with profile {profile}")
    scored = rows_of(profile) + rows_of(profile, "per_image_further")
    for line in rows_of(profile, "table2"):
        mean_dice = defaultdict(lambda: defaultdict(list))
        runs = {(r["target"], r["seed"]) for r in scored if r["method"] == line["row"]}              # the row may have been run with some of the seeds alone
        for r in scored:
            if (r["target"], r["seed"]) in runs:
                mean_dice[r["method"]][r["image"]].append((float(r["disc_dice"]) + float(r["cup_dice"])) / 2)
        mine, theirs = ({i: math.fsum(of) / len(of) for i, of in mean_dice[m].items()} for m in (line["row"], line["against"]))
        assert set(mine) == set(theirs) and len(mine) == int(line["n"])
        gains = [mine[i] - theirs[i] for i in mine]
        assert math.isclose(float(line["difference"]), stats.tmean(gains), abs_tol=3e-6)
        assert float(line["low"]) <= float(line["difference"]) <= float(line["high"])
