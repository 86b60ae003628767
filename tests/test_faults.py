"""Wrong input: one clear error that names the culprit, and earlier results stay as they were."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mfmda.core.files import InputError, TrainingError, write_json
from mfmda.core.training import LoopOptions, RunOptions, fit
from mfmda.data.sets import load_folder, load_set
from mfmda.study.pipeline import load_source, load_target
from mfmda.study.profiles import load_profile
from mfmda.use.cli import main


def folder_of_eyes(folder, n=4, size=32):
    "A small generic data set: images/ and masks/ with a disc and a cup inside it."
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    mask = np.zeros((size, size), np.uint8)
    mask[8:24, 8:24], mask[12:20, 12:20] = 1, 2
    for i in range(n):
        Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(
            folder / "images" / f"eye{i}.png"
        )
        Image.fromarray(mask).save(folder / "masks" / f"eye{i}.png")
    return folder


def profile_with_target(tmp_path, pool):
    "A profile file whose target pool is a folder."
    sets = load_profile("smoke")
    target = {"clinic": {"pool": f"folder:{pool}", "test": f"folder:{pool}"}}
    values = {"base": "smoke", "source": sets.source.model_dump(), "targets": target}
    return write_json(tmp_path / "clinic.json", values)


def test_a_profile_may_adapt_to_a_folder(tmp_path):
    pool = folder_of_eyes(tmp_path / "clinic", n=14)
    target = load_target(load_profile(profile_with_target(tmp_path, pool)), "clinic", seed=0)
    assert len(target.shots) == 10 and len(target.rest) == 4
    assert not set(target.shots.ids) & set(target.test.ids)


@pytest.mark.parametrize("empty", ["no folder", "no images"])
def test_empty_target_folder(tmp_path, empty):
    pool = tmp_path / "clinic"
    if empty == "no images":
        (pool / "images").mkdir(parents=True)
    with pytest.raises(InputError, match="clinic"):
        load_target(load_profile(profile_with_target(tmp_path, pool)), "clinic", seed=0)


def test_too_few_target_images(tmp_path):
    pool = folder_of_eyes(tmp_path / "clinic", n=4)
    with pytest.raises(InputError, match="shots=10"):
        load_target(load_profile(profile_with_target(tmp_path, pool)), "clinic", seed=0)


def break_mask_size(folder):
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(folder / "masks" / "eye2.png")


def break_png(folder):
    file = folder / "images" / "eye2.png"
    file.write_bytes(file.read_bytes()[:200])


def break_mask_values(folder):
    Image.fromarray(np.full((32, 32), 77, np.uint8)).save(folder / "masks" / "eye2.png")


def break_pairing(folder):
    (folder / "masks" / "eye2.png").unlink()


@pytest.mark.parametrize(
    "damage", [break_mask_size, break_png, break_mask_values, break_pairing]
)
def test_damaged_folders_name_the_file(tmp_path, damage):
    folder = folder_of_eyes(tmp_path / "set")
    assert len(load_folder(folder, 32, "set")) == 4
    damage(folder)
    with pytest.raises(InputError, match="eye2"):
        load_folder(folder, 32, "set")


def test_cup_outside_its_disc(tmp_path):
    folder = folder_of_eyes(tmp_path / "set")
    for i in range(4):
        mask = np.array(Image.open(folder / "masks" / f"eye{i}.png"))
        for name, region in (("masks_disc", mask > 0), ("masks_cup", mask > 1)):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(region.astype(np.uint8) * 255).save(folder / name / f"eye{i}.png")
    for file in (folder / "masks").iterdir():
        file.unlink()
    (folder / "masks").rmdir()
    assert len(load_folder(folder, 32, "set")) == 4
    cup = np.array(Image.open(folder / "masks_cup" / "eye1.png"))
    cup[0, 0] = 255
    Image.fromarray(cup).save(folder / "masks_cup" / "eye1.png")
    with pytest.raises(InputError, match="eye1"):
        load_folder(folder, 32, "set")


@pytest.mark.parametrize(
    "words, says",
    [
        (["reproduce", "--profile", "maxi"], "profile='maxi' is unknown"),
        (
            ["step", "2_adapt", "--profile", "smoke", "--target", "phantom_q"],
            "target='phantom_q'",
        ),
        (
            ["step", "2_adapt", "--profile", "smoke", "--seed", "9", "--target", "phantom_b"],
            "seed=9",
        ),
        (
            ["step", "2_adapt", "--profile", "no/such.json", "--target", "phantom_b"],
            "no/such.json",
        ),
    ],
)
def test_command_line_answers_in_one_line(capsys, words, says):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_failing_step_leaves_earlier_results(tmp_path, capsys):
    "The step is due, its input damaged: exit status 2, the cell named, the old result untouched."
    root = tmp_path / "work"
    for need in ("1_source_ddpm", "seed0/4_foundation"):
        write_json(root / "runs/smoke" / need / "result.json", {"earlier": need})
    folder = root / "runs/smoke/seed0/2_adapt/phantom_b"
    old = write_json(folder / "result.json", {"chosen": {"step": 6}})
    before = old.read_bytes()
    which = ["--profile", "smoke", "--target", "phantom_b", "--root", str(root)]
    assert main(["step", "2_adapt", *which]) == 2
    error = capsys.readouterr().err
    assert "2_adapt.ipynb, cell" in error and "InputError" in error
    assert old.read_bytes() == before


def test_nan_loss_keeps_the_last_checkpoint(tmp_path):
    net = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), 1e-2)

    def step(i):
        return {"loss": net(torch.ones(1, 2)).square().mean() * (float("inf") if i == 7 else 1)}

    state = tmp_path / "state.pt"
    with pytest.raises(TrainingError, match="loss of step 7"):
        fit(
            step,
            10,
            {"net": net},
            optimizer,
            RunOptions(checkpoint=state),
            LoopOptions(every=5),
        )
    assert torch.load(state, weights_only=True)["step"] == 5
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_pickles_are_not_executed(tmp_path):
    "A checkpoint that would run code when unpickled is refused, and the code does not run."
    import pickle

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    state = tmp_path / "state.pt"
    state.write_bytes(pickle.dumps(Trap()))
    net = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def step(i):
        return {"loss": net(torch.ones(1, 2)).sum()}

    with pytest.raises(InputError, match="not a readable checkpoint"):
        fit(step, 2, {"net": net}, optimizer, RunOptions(checkpoint=state))
    assert not (tmp_path / "executed").exists()


def test_sets_are_named_when_unknown():
    for spec in (
        "phantom:phantom_z?seed=0&start=0&count=2",
        "crops:no_such_set",
        "photos:x",
        "",
    ):
        with pytest.raises(InputError):
            load_set(spec, 32)


def test_source_and_target_never_share_an_eye():
    profile = load_profile("mini")
    source = load_source(profile)
    seen = {i.split(":")[-1] for i in source.train.ids}
    for name in profile.targets:
        target = load_target(profile, name, 0)
        assert not seen & set(target.test.ids) and not set(target.shots.ids) & set(
            target.test.ids
        )
        ours = source.test.images[:8].flatten(1).unsqueeze(1)
        theirs = target.test.images[:8].flatten(1)
        assert not (ours == theirs).all(-1).any()
