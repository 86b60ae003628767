"""Nothing is lost: every training, killed (SIGKILL) while it writes a checkpoint and right after
one, ends with the weights of a run that was left alone."""

import dataclasses
import multiprocessing
import os
import time

import pytest
import torch

KILLS = int(os.environ.get("MFMDA_KILLS", 2))  # of each stage; `make test-long` asks for more
EVERY, STEPS = 2, 4 * KILLS  # a checkpoint every two steps: two for each kill


def eyes(count=12, camera="phantom_a"):
    from mfmda.data.sets import load_phantoms

    return load_phantoms(camera, 3, 0, count, 32)


def options(folder):
    from mfmda.core.training import RunOptions

    return RunOptions(checkpoint=folder / "state.pt", device="cpu")


def train_ddpm(folder):
    from mfmda.stage1.ddpm import train_ddpm
    from mfmda.stage1.settings import DDPMSettings

    settings = DDPMSettings(channels=[8, 16], steps=STEPS, batch=4, lr=1e-3, ema=0.9)
    return train_ddpm(eyes().images, settings, options(folder))[0]


def warm_up(folder):
    from mfmda.stage1.ddpm import build_unet, warm_up_fusion
    from mfmda.stage1.settings import FusionSettings

    torch.manual_seed(0)
    settings = FusionSettings(steps=STEPS, lr=1e-3)
    return warm_up_fusion(build_unet(32, (8, 16)), eyes().images, settings, options(folder))[0]


def weight_sum(model, step):
    return dict(weight=float(next(model.parameters()).sum()))


def adapt(folder):
    from mfmda.stage1.ddpm import FusedUNet, build_unet
    from mfmda.stage1.encoders import load_encoder, load_style
    from mfmda.stage1.objective import Stage1, adapt_ddpm
    from mfmda.study.profiles import load_profile

    torch.manual_seed(0)
    settings = load_profile("smoke").adapt.replace(steps=STEPS, score_every=EVERY)
    encoder = load_encoder("efficientnet_lite0", 32)
    style = load_style("efficientnet_lite0")
    shots = eyes(3, "phantom_b")
    data = Stage1.prepare(eyes().images, shots.images, encoder, style)
    model = FusedUNet(build_unet(32, (8, 16)))
    adaptor, _, scores = adapt_ddpm(model, data, settings, options(folder), weight_sum)
    assert [s["step"] for s in scores] == list(range(0, STEPS + 1, EVERY))
    return torch.nn.ModuleList([model, adaptor])


def pretrain(folder):
    from mfmda.stage2.mae import pretrain_mae
    from mfmda.stage2.settings import MaeSettings

    small = dict(image_size=32, dim=24, depth=4, heads=2)
    decoder = dict(decoder_dim=16, decoder_depth=1, decoder_heads=2)
    settings = MaeSettings(**small, **decoder, steps=STEPS, batch=4)
    return pretrain_mae(eyes().images, settings, options(folder))[0]


def segment(folder):
    from mfmda.stage2.foundation import build_foundation
    from mfmda.stage2.segmenter import SegmentationModel
    from mfmda.stage2.settings import LoraSettings, SegmentSettings
    from mfmda.stage2.tuning import Pairs, train_segmenter

    torch.manual_seed(0)
    lora = LoraSettings(rank=2, alpha=4)
    network = SegmentationModel(build_foundation("efficientnet_lite0", None, "lora", lora, 32))
    pairs = Pairs(eyes(), eyes(camera="phantom_b").images)
    settings = SegmentSettings(steps=STEPS, batch=4)
    return train_segmenter(pairs, network, settings, options(folder)).network


STAGES = dict(ddpm=train_ddpm, fusion=warm_up, adapt=adapt, mae=pretrain, segment=segment)


def checkpoint_often():
    "Let every stage's loop write a checkpoint every few steps."
    from mfmda.core import training
    from mfmda.stage1 import ddpm, objective
    from mfmda.stage2 import mae, tuning

    def fit(step, steps, modules, optimizer, run, loop=training.LoopOptions()):
        loop = dataclasses.replace(loop, every=EVERY)
        return training.fit(step, steps, modules, optimizer, run, loop)

    for module in (ddpm, objective, mae, tuning):
        module.fit = fit


def child(stage, folder, begun, done, wait_at):
    """Run a stage; tell the parent of each checkpoint that is written and of each that is in place,
    and wait between the two at number `wait_at`."""
    torch.set_num_threads(1)
    checkpoint_often()
    replace = os.replace

    def slow_replace(source, target):
        checkpoint = str(target).endswith("state.pt")
        begun.value += checkpoint
        if checkpoint and begun.value == wait_at:
            time.sleep(60)
        replace(source, target)
        done.value += checkpoint

    os.replace = slow_replace
    model = STAGES[stage](folder)
    torch.save(list(model.state_dict().values()), folder / "final.pt")


def run(context, stage, folder, kill_while=None, kill_after=None):
    """Run a stage in a process of its own; kill it while it writes its n-th checkpoint, or once it
    has. Returns how many checkpoints this process began to write."""
    begun, done = context.Value("i", 0), context.Value("i", 0)  # only the child writes them
    process = context.Process(target=child, args=(stage, folder, begun, done, kill_while))
    process.start()
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        if begun.value == kill_while or (kill_after and done.value >= kill_after):
            process.kill()
        time.sleep(0.002)
    process.join(10)
    assert process.exitcode == (-9 if kill_while or kill_after else 0)
    return begun.value


@pytest.fixture(scope="module")
def context():
    "Starts clean processes, for which the imports are done once."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["mfmda.stage1.objective", "mfmda.stage2.mae", "mfmda.stage2.tuning", "mfmda.data.sets"]
    )
    return context


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_ends_with_the_weights_of_one_that_was_left_alone(
    stage, context, tmp_path, record
):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    alone.mkdir()
    killed.mkdir()
    everything = run(context, stage, alone)
    assert everything >= STEPS // EVERY
    for k in range(KILLS):  # each time it goes on from where it was
        if k % 2:  # killed right after its next checkpoint
            run(context, stage, killed, kill_after=1)
        else:  # or when the one after that is written and not yet in place
            assert run(context, stage, killed, kill_while=2) == 2
        assert (killed / "state.pt").exists()
    left = run(context, stage, killed)
    assert left < everything and not (killed / ".state.lock").exists()
    final = [torch.load(folder / "final.pt", weights_only=True) for folder in (alone, killed)]
    assert len(final[0]) == len(final[1])
    assert all(torch.equal(a, b) for a, b in zip(*final))
    facts = dict(
        kills=KILLS, steps=STEPS, checkpoints=everything, tensors_compared=len(final[0])
    )
    record(test="kills", of=stage, **facts, equal=True)
