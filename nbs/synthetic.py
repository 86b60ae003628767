"""A run that never happened, for the pages of results, tables and figures.

Its numbers come from a random generator and no network took part. The pictures are phantoms; a
"translation" is the same eye through the other camera, a "prediction" is the mask, grown and
blurred.
"""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image

from mfmda.core.files import RECORD_VERSION, write_json
from mfmda.data.sets import load_set
from mfmda.study.metrics import score_set, scores_in
from mfmda.study.profiles import SOURCE_ONLY, Layout, load_profile, methods_of
from mfmda.study.results import KEYS, RECIPE_NAMES

SYNTHETIC = load_profile("smoke").replace(
    name="synthetic", note="made up, to show the report", size=48, seeds=[0, 1]
)
SHOTS = [f"shot{i}" for i in range(10)]
QUALITY = dict(  # how good each method pretends to be
    unet_source=0.0,
    unet_source_running=0.02,
    unet_adabn=0.05,
    unet_tent=0.1,
    mfm_source=0.2,
    mfm_source_running=0.35,
    mfm_adabn=0.25,
    mfm_tent=0.3,
    mfm_vptta=0.35,
    mfm_dpl=0.32,
    mfm_reinhard=0.4,
    mfm_fda=0.45,
    mfm_da_paper=0.6,
    mfm_da=0.8,
    oracle=1.0,
)


def pretend(masks, quality, seed):
    """Probabilities (n, 2, S, S), the better, the nearer `quality` is to 1.

    The mask is shifted and grown at random, then blurred.
    """
    rng = np.random.default_rng(seed)
    found = []
    for mask in masks:
        regions = np.stack([mask > 0, mask == 2]).astype(np.float32)
        grow = 1 + 2 * round((1 - quality) * rng.uniform(0.5, 2))
        down = round((1 - quality) * rng.uniform(0, 4))
        grown = F.max_pool2d(torch.from_numpy(regions)[None], grow, 1, grow // 2)
        blurred = F.avg_pool2d(grown, 3, 1, 1)
        found.append(blurred.roll(down, 2)[0].numpy())
    return np.stack(found)


def rows_of(probabilities, test, target, method, seed):
    "Rows of `per_image.csv`, scored by the real protocol."
    scores = score_set(torch.from_numpy(probabilities), test)
    rows = scores.assign(source="phantom_a", target=target, method=method, seed=seed)
    return rows[KEYS + scores_in(rows)]


def save_pngs(folder, images, masks, names):
    "Pictures and masks as step 3 leaves them: `images/<name>.png` and `masks/<name>.png`."
    pixels = dict(images=images.permute(0, 2, 3, 1).numpy(), masks=masks.numpy())
    for kind, pictures in pixels.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for picture, name in zip(pictures, names):
            Image.fromarray(picture).save(folder / kind / f"{name}.png")


def phantoms(camera, start, count):
    "Made-up eyes through a camera, as the synthetic run uses them."
    return load_set(f"phantom:{camera}?seed=1&start={start}&count={count}", SYNTHETIC.size)


def synthetic_run(root):
    "Write the files that steps 1–5 would have written for the profile `SYNTHETIC`."
    layout = Layout("synthetic", root)
    eyes = phantoms("phantom_a", 0, 10)
    for seed in SYNTHETIC.seeds:
        origin = dict(
            version=RECORD_VERSION,
            params=SYNTHETIC.model_dump(),
            seed=seed,
            data_fingerprint="5y17he71c",
            versions=dict(python="3"),
            commit="synthetic",
            wall_s=60.0,
            parts_s={},
            peak_memory_mb=900.0,
        )
        synthetic_source(layout, seed, origin)
        for k, target in enumerate(SYNTHETIC.targets):
            about = origin | dict(target=target, shots=SHOTS)
            synthetic_adaptation(layout.adapted(seed, target), k, about)
            synthetic_translation(layout.translated(seed, target), eyes, about)
            synthetic_target(layout, k, about)
    return layout


def synthetic_source(layout, seed, origin):
    "What steps 1 and 4 leave: a result each, and the source-only rows on the source's test set."
    home = phantoms("phantom_a", 900, 6)
    rows = []
    source_only = [m for m in methods_of(SYNTHETIC) if m in SOURCE_ONLY]
    for method in sorted(source_only):
        found = pretend(home.masks.numpy(), 0.9 + 0.1 * QUALITY[method], seed)
        rows.append(rows_of(found, home, "phantom_a", method, seed))
    folder = layout.foundation(seed)
    folder.mkdir(parents=True)
    pd.concat(rows).to_csv(folder / "per_image.csv", index=False)
    validation = dict(a_made_up_mfm=dict(disc=0.9, cup=0.8, mean=0.85))
    chosen = dict(step="4_foundation", chosen="a_made_up_mfm", validation=validation)
    write_json(folder / "result.json", origin | chosen)
    write_json(layout.source_ddpm() / "result.json", origin | dict(step="1_source_ddpm"))


def synthetic_adaptation(folder, k, about):
    "What step 2 leaves for the k-th target: scores by step, and the one it chose."
    scores = [
        dict(
            step=step,
            disc_kept=0.95 - 0.004 * step,
            cup_kept=0.9 - 0.006 * step,
            anatomy_kept=0.925 - 0.005 * step,
            target_distance=0.3 * np.exp(-step / 8) + 0.02 * k,
            style_distance=3 * np.exp(-step / 8) + 0.2 * k,
        )
        for step in range(0, 25, 6)
    ]
    folder.mkdir(parents=True)
    table = pd.DataFrame(scores).assign(seed=about["seed"], target=about["target"])
    table.to_csv(folder / "translation.csv", index=False)
    untranslated = scores[0] | dict(target_distance=0.5, style_distance=5.0)
    found = dict(scores=scores, chosen=scores[2], untranslated=untranslated)
    encoder = dict(name="made_up_f")
    write_json(folder / "result.json", about | dict(step="2_adapt", encoder=encoder) | found)


def synthetic_translation(folder, eyes, about):
    "What step 3 leaves: every eye through the target's camera, under the name of each recipe."
    twins = phantoms(about["target"], 0, 10)
    kept = dict(disc_kept=0.95, cup_kept=0.9, target_distance=0.1, pairs_kept=1.0)
    recipes = {name: kept for name in RECIPE_NAMES}
    for name in RECIPE_NAMES:
        save_pngs(folder / name, twins.images, twins.masks, eyes.ids)
        sheet = dict(ids=eyes.ids, anatomy_kept=[0.93] * len(eyes.ids))
        write_json(folder / name / "keep.json", sheet)
    recipes["source"] = dict(disc_kept=0.98, cup_kept=0.95, target_distance=0.5)
    write_json(folder / "result.json", about | dict(step="3_translate", recipes=recipes))


def synthetic_target(layout, k, about):
    "What step 5 leaves for the k-th target: rows, predictions, and a result each of its two parts."
    seed, target = about["seed"], about["target"]
    test = phantoms(target, 900, 6)
    folder = layout.segmented(seed, target)
    folder.mkdir(parents=True)
    masks = test.masks.numpy()
    found = {m: pretend(masks, QUALITY[m], seed + 10 * k + 1) for m in methods_of(SYNTHETIC)}
    rows = [rows_of(p, test, target, m, seed) for m, p in found.items()]
    pd.concat(rows).to_csv(folder / "per_image.csv", index=False)
    halves = {f"p_{m}": p.astype(np.float16) for m, p in found.items()}
    pictures = dict(images=test.images.numpy(), masks=masks, ids=test.ids)
    np.savez_compressed(folder / "predictions.npz", **pictures, **halves)
    write_json(layout.rivals(seed, target) / "result.json", about | dict(step="5_rivals"))
    seen = dict(test_ids=test.ids, test_fingerprint=test.fingerprint)
    what = dict(step="5_segment", foundation="a_made_up_mfm")
    write_json(folder / "result.json", about | what | seen)


def synthetic_further(rows, gain):
    "MFM-DA on one target, its cup made better or worse by `gain`, as if it were a further row."
    mine = rows[(rows.method == "mfm_da") & (rows.target == "phantom_b")]
    return mine.assign(cup_dice=mine.cup_dice + gain * np.linspace(0.5, 1.5, len(mine)))
