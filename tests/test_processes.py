"""Two processes under torchrun do what one does: same losses, same translations, one set of files. Run by itself, this file is what the processes run."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def histories(folder):
    "Losses of each training, a translation, and the files that were kept."
    from mfmda.config import is_first, load_profile, wait
    from mfmda.data import load_phantoms
    from mfmda.ddpm import build_unet, train_ddpm
    from mfmda.encoders import load_encoder, load_style
    from mfmda.foundation import build_foundation
    from mfmda.segment import SegmentationModel, SegmentSettings, train_segmenter
    from mfmda.translate import FusedUNet, Stage1, adapt, translate, warm_up_fusion
    torch.set_num_threads(1)
    eyes, shots = load_phantoms("phantom_a", 3, 0, 12, 32), load_phantoms("phantom_b", 3, 0, 4, 32)
    smoke = load_profile("smoke")
    unet, ddpm = train_ddpm(eyes.images, dict(channels=[8, 16], steps=4, batch=4, accumulate=2, lr=1e-3, ema=.9, loss="l1"), checkpoint=folder / "ddpm.pt")
    fused, fusion = warm_up_fusion(unet, eyes.images, dict(warmup_steps=4, warmup_lr=1e-3), checkpoint=folder / "fusion.pt")
    data = Stage1.prepare(eyes.images, shots.images, load_encoder("efficientnet_lite0", 32), load_style("efficientnet_lite0"))
    recipe = smoke.recipes["paper"] | dict(ddim_steps=3)
    made = {}

    def score(model, step):
        made[step] = translate(model, eyes.float_images(), recipe, batch=4)
        return dict(value=made[step].mean().item())
    _, adapted, scores = adapt(fused, data, smoke.adapt | dict(steps=4, score_every=2), score=score, folder=folder / "adapted")
    torch.manual_seed(0)
    network = SegmentationModel(build_foundation("efficientnet_lite0", None, "lora", dict(rank=2, alpha=4), 32))
    keep = torch.arange(12) % 3 > 0
    segmenter = train_segmenter(eyes, eyes.images.flip(1), network, SegmentSettings(steps=4, batch=4, statistics="running"), checkpoint=folder / "segment.pt", keep=keep, device="cpu")
    wait()
    losses = lambda history: [h["loss"] for h in history]
    if is_first():
        (folder / "found.json").write_text(json.dumps(dict(
            ddpm=losses(ddpm), fusion=losses(fusion), adapt=losses(adapted), segment=losses(segmenter.history), scores=[s["value"] for s in scores], translated=made[4].flatten()[::97].tolist(),
            statistics=[v.float().mean().item() for k, v in segmenter.network.state_dict().items() if "decoder" in k and "running" in k], files=sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*")))))


def found(folder, processes):
    folder.mkdir()
    command = [sys.executable, *(["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []), __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=os.environ | dict(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES=""))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.skipif(sys.platform == "win32", reason="gloo under torchrun is for Linux and macOS")
def test_two_processes_give_the_losses_of_one(tmp_path):
    one, two = found(tmp_path / "one", 1), found(tmp_path / "two", 2)
    assert len(one["ddpm"]) > 1 and len(one["translated"]) > 100
    for name in one:
        if name != "files":
            torch.testing.assert_close(torch.tensor(two[name]), torch.tensor(one[name]), atol=1e-4, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    assert two["files"] == one["files"]                         # what the second process wrote is gone


if __name__ == "__main__":
    histories(Path(sys.argv[1]))
