"""Nothing is lost: every training loop, killed (SIGKILL) while it writes a checkpoint and right after one, ends with the weights of a run that was left alone."""
import multiprocessing
import os
import time
from functools import partial

import pytest
import torch

KILLS = int(os.environ.get("MFMDA_KILLS", 2))          # of each stage; `make test-long` asks for more
EVERY, STEPS = 2, 4 * KILLS                            # a checkpoint every two steps: two for each kill


def eyes(count=12, camera="phantom_a"):
    from mfmda.data import load_phantoms
    return load_phantoms(camera, 3, 0, count, 32)


def train_ddpm(folder):
    from mfmda.ddpm import train_ddpm
    return train_ddpm(eyes().images, dict(channels=[8, 16], steps=STEPS, batch=4, lr=1e-3, ema=.9, loss="l1"), checkpoint=folder / "state.pt")[0]


def warm_up(folder):
    from mfmda.ddpm import build_unet
    from mfmda.translate import warm_up_fusion
    torch.manual_seed(0)
    return warm_up_fusion(build_unet(32, (8, 16)), eyes().images, dict(warmup_steps=STEPS, warmup_lr=1e-3), checkpoint=folder / "state.pt")[0]


def adapt(folder):
    from mfmda.config import load_profile
    from mfmda.ddpm import build_unet
    from mfmda.encoders import load_encoder, load_style
    from mfmda.translate import FusedUNet, Stage1, adapt
    torch.manual_seed(0)
    settings = load_profile("smoke").adapt | dict(steps=STEPS, score_every=EVERY)
    data = Stage1.prepare(eyes().images, eyes(3, "phantom_b").images, load_encoder("efficientnet_lite0", 32), load_style("efficientnet_lite0"))
    model = FusedUNet(build_unet(32, (8, 16)))
    adaptor, _, scores = adapt(model, data, settings, score=lambda model, step: dict(weight=float(next(model.parameters()).sum())), folder=folder)
    assert [s["step"] for s in scores] == list(range(0, STEPS + 1, EVERY))
    return torch.nn.ModuleList([model, adaptor])


def pretrain(folder):
    from mfmda.foundation import MaeSettings, pretrain_mae
    tiny = MaeSettings(image_size=32, dim=24, depth=4, heads=2, decoder_dim=16, decoder_depth=1, decoder_heads=2, steps=STEPS, batch=4)
    return pretrain_mae(eyes().images, tiny, checkpoint=folder / "state.pt", device="cpu")[0]


def segment(folder):
    from mfmda.foundation import build_foundation
    from mfmda.segment import SegmentationModel, SegmentSettings, train_segmenter
    torch.manual_seed(0)
    network = SegmentationModel(build_foundation("efficientnet_lite0", None, "lora", dict(rank=2, alpha=4), 32))
    return train_segmenter(eyes(), eyes(camera="phantom_b").images, network, SegmentSettings(steps=STEPS, batch=4), checkpoint=folder / "state.pt", device="cpu").network


STAGES = dict(ddpm=train_ddpm, fusion=warm_up, adapt=adapt, mae=pretrain, segment=segment)


def child(stage, folder, begun, done, wait_at):
    "Run a stage; tell the parent of each checkpoint that is written and of each that is in place, and wait between the two at number `wait_at`."
    torch.set_num_threads(1)
    from mfmda import config, ddpm, foundation, segment, translate
    for module in (ddpm, foundation, segment, translate):
        module.fit = partial(module.fit, every=EVERY)
    replace = os.replace

    def slow_replace(source, target):
        checkpoint = str(target).endswith("state.pt")
        begun.value += checkpoint
        if checkpoint and begun.value == wait_at:
            time.sleep(60)
        replace(source, target)
        done.value += checkpoint
    config.os.replace = slow_replace
    model = STAGES[stage](folder)
    torch.save([v for v in model.state_dict().values()], folder / "final.pt")


def run(context, stage, folder, kill_while=None, kill_after=None):
    "Start a stage in a process of its own; kill it while it writes its n-th checkpoint, or once it has. Returns how many checkpoints this process began to write."
    begun, done = context.Value("i", 0), context.Value("i", 0)          # only the child writes them
    process = context.Process(target=child, args=(stage, folder, begun, done, kill_while))
    process.start()
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        if begun.value == kill_while or (kill_after and done.value >= kill_after):
            process.kill()
        time.sleep(.002)
    process.join(10)
    assert process.exitcode == (-9 if kill_while or kill_after else 0)
    return begun.value


@pytest.fixture(scope="module")
def context():
    context = multiprocessing.get_context("forkserver")          # a clean process, in which the imports are done once
    context.set_forkserver_preload(["mfmda.translate", "mfmda.foundation", "mfmda.segment", "mfmda.data"])
    return context


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_ends_with_the_weights_of_one_that_was_left_alone(stage, context, tmp_path, record):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    alone.mkdir()
    killed.mkdir()
    everything = run(context, stage, alone)
    assert everything >= STEPS // EVERY
    for k in range(KILLS):                                         # each time it goes on from where it was
        if k % 2:
            run(context, stage, killed, kill_after=1)              # killed right after its next checkpoint
        else:
            assert run(context, stage, killed, kill_while=2) == 2  # or when the one after that is written and not yet in place
        assert (killed / "state.pt").exists()
    left = run(context, stage, killed)
    assert left < everything and not (killed / ".state.lock").exists()
    final = [torch.load(folder / "final.pt", weights_only=True) for folder in (alone, killed)]
    assert len(final[0]) == len(final[1]) and all(torch.equal(a, b) for a, b in zip(*final))
    record(test="kills", of=stage, kills=KILLS, steps=STEPS, checkpoints=everything, tensors_compared=len(final[0]), equal=True)
