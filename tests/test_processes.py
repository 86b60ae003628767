"""Two processes under torchrun do what one does: same noise, same losses, same translations, one
set of files. Run by itself, this file is what the processes run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SIZE = 32


def settings():
    "The smallest of every stage."
    from mfmda.stage1.settings import DDPMSettings, FusionSettings
    from mfmda.stage2.settings import SegmentSettings
    from mfmda.study.profiles import load_profile

    smoke = load_profile("smoke")
    return dict(
        ddpm=DDPMSettings(channels=[8, 16], steps=4, batch=4, accumulate=2, lr=1e-3, ema=0.9),
        fusion=FusionSettings(steps=4, lr=1e-3),
        adapt=smoke.adapt.replace(steps=4, score_every=2),
        recipe=smoke.recipes["paper"].replace(ddim_steps=3),
        segment=SegmentSettings(steps=4, batch=4, statistics="running"),
    )


def stage1(folder, eyes, s):
    "Losses of the source model, its fusion layers and its adaptation; translations and a step."
    from mfmda.core.training import RunOptions
    from mfmda.data.sets import load_phantoms
    from mfmda.stage1.ddpm import train_ddpm, warm_up_fusion
    from mfmda.stage1.encoders import load_encoder, load_style
    from mfmda.stage1.objective import Stage1, adapt_ddpm
    from mfmda.stage1.translate import Translator, translate

    def run(name):
        return RunOptions(checkpoint=folder / name, device="cpu")

    unet, ddpm = train_ddpm(eyes.images, s["ddpm"], run("ddpm.pt"))
    fused, fusion = warm_up_fusion(unet, eyes.images, s["fusion"], run("fusion.pt"))
    encoder, style = load_encoder("efficientnet_lite0", SIZE), load_style("efficientnet_lite0")
    shots = load_phantoms("phantom_b", 3, 0, 4, SIZE)
    data = Stage1.prepare(eyes.images, shots.images, encoder, style)
    made = {}

    def score(model, step):
        made[step] = translate(Translator(model), eyes.float_images(), s["recipe"], batch=4)
        return dict(value=made[step].mean().item())

    run_adapt = run("adapted/state.pt")
    _, adapted, scores = adapt_ddpm(fused, data, s["adapt"], run_adapt, score)
    return dict(
        ddpm=losses(ddpm),
        fusion=losses(fusion),
        adapt=losses(adapted),
        scores=[s["value"] for s in scores],
        translated=made[4].flatten()[::97].tolist(),
        step=noise_of_a_step(fused, eyes.float_images()[:4]),
    )


def losses(history):
    return [h["loss"] for h in history]


def noise_of_a_step(model, x):
    "A noise estimate whose batch hears the condition at two of four times, both in one process."
    from mfmda.core.runtime import all_reduce_sum, rank_and_world_size, shard

    times = torch.tensor([100, 900, 200, 950])
    torch.manual_seed(0)
    torch.nn.init.normal_(model.fusion[-1].weight)
    part = dict(condition=shard(x), heard=True, shared=True)
    rank, world = rank_and_world_size()
    whole = torch.zeros_like(x)
    with torch.no_grad():
        whole[rank::world] = model(shard(x), shard(times), **part)
    return all_reduce_sum(whole).flatten()[::97].tolist()


def stage2(folder, eyes, settings):
    "Losses of a segmenter, and the statistics of its decoder."
    from mfmda.core.training import RunOptions
    from mfmda.stage2.foundation import build_foundation
    from mfmda.stage2.segmenter import SegmentationModel
    from mfmda.stage2.settings import LoraSettings
    from mfmda.stage2.tuning import Pairs, train_segmenter

    torch.manual_seed(0)
    lora = LoraSettings(rank=2, alpha=4)
    network = SegmentationModel(
        build_foundation("efficientnet_lite0", None, "lora", lora, SIZE)
    )
    pairs = Pairs(eyes, eyes.images.flip(1), keep=torch.arange(12) % 3 > 0)
    run = RunOptions(checkpoint=folder / "segment.pt", device="cpu")
    segmenter = train_segmenter(pairs, network, settings, run)
    state = segmenter.network.state_dict().items()
    running = [v.float().mean().item() for k, v in state if "decoder" in k and "running" in k]
    return dict(segment=losses(segmenter.history), statistics=running)


def main(folder):
    "Write down what was found, for the test to compare."
    from mfmda.core.files import is_main_process, wait_for_everyone
    from mfmda.data.sets import load_phantoms

    torch.set_num_threads(1)
    eyes, s = load_phantoms("phantom_a", 3, 0, 12, SIZE), settings()
    found = stage1(folder, eyes, s) | stage2(folder, eyes, s["segment"])
    wait_for_everyone()
    if is_main_process():
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))
        (folder / "found.json").write_text(json.dumps(found | dict(files=files)))


def found(folder, processes):
    folder.mkdir()
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(processes),
    ]
    command = [sys.executable, *(torchrun if processes > 1 else []), __file__, str(folder)]
    env = os.environ | dict(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.skipif(
    sys.platform == "win32", reason="gloo under torchrun is for Linux and macOS"
)
def test_two_processes_give_the_losses_of_one(tmp_path):
    one, two = found(tmp_path / "one", 1), found(tmp_path / "two", 2)
    assert len(one["ddpm"]) > 1 and len(one["translated"]) > 100
    assert two.pop("files") == one.pop("files")  # what the second process wrote is gone
    for name in one:
        torch.testing.assert_close(
            torch.tensor(two[name]),
            torch.tensor(one[name]),
            atol=1e-4,
            rtol=1e-4,
            msg=lambda m, name=name: f"{name}: {m}",
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
