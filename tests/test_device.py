"""An ordinary update of each training asks its device for nothing and sends it nothing.

The device is torch's `meta`: it has shapes and no numbers, so reading a number is an error.
"""

import contextlib
import dataclasses
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mfmda.core.files import InputError
from mfmda.core.graphs import DeviceUpdates
from mfmda.core.runtime import ACROSS_DEVICES, ON_THIS_DEVICE
from mfmda.core.training import RunOptions
from mfmda.data.sets import load_phantoms
from mfmda.stage1 import ddpm, objective
from mfmda.stage1.encoders import load_encoder, load_style
from mfmda.stage1.settings import AdaptSettings, DDPMSettings, FusionSettings
from mfmda.stage2 import tuning
from mfmda.stage2.foundation import build_foundation
from mfmda.stage2.mae import pretrain_mae
from mfmda.stage2.segmenter import SegmentationModel
from mfmda.stage2.settings import LoraSettings, MaeSettings, SegmentSettings

RUN = RunOptions(device="meta", reproducible=ON_THIS_DEVICE)
WATCHED = 4  # the update that is watched: others draw for many steps at once


class Watch(TorchDispatchMode):
    "Notes what passes between the computer and the device, and what the computer draws."

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        given, made = (self._devices(x) for x in ((args, kwargs), found))
        if made and given and made != given and name != "item":
            self.seen.append(f"copy: {name}")
        if torch.Tag.nondeterministic_seeded in func.tags and "cpu" in made:
            self.seen.append(f"drawn on the CPU: {name}")
        return found

    @staticmethod
    def _devices(things):
        "Where tensors are; a number on the CPU that scales others is no copy."
        tensors = [x for x in tree_leaves(things) if torch.is_tensor(x)]
        return {x.device.type for x in tensors if x.ndim or x.device.type != "cpu"}


@contextlib.contextmanager
def watched():
    "What an update does; the losses are never read, since there are none."
    watch, plain = Watch(), DeviceUpdates.__call__

    def update(self, i):
        with watch if i == WATCHED else contextlib.nullcontext():
            plain(self, i)

    unread = mock.patch.object(DeviceUpdates, "numbers", lambda self: dict(loss=0.0))
    # torch knows no autocast for `meta`
    exact = mock.patch.object(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    with mock.patch.object(DeviceUpdates, "__call__", update), unread, exact:
        yield watch.seen


def eyes(size=32, n=12):
    return load_phantoms("phantom_a", 1, 0, n, size)


def train_source_ddpm():
    settings = DDPMSettings(channels=[16, 32], steps=WATCHED + 1, batch=4)
    ddpm.train_ddpm(eyes().images, settings, RUN)


def warm_up():
    unet = ddpm.build_unet(32, (16, 32))
    settings = FusionSettings(steps=WATCHED + 1, batch=4)
    with mock.patch.object(ddpm, "fingerprint", lambda *_: ""):
        ddpm.warm_up_fusion(unet.to("meta"), eyes().images, settings, RUN)


def adapt():
    encoder, style = load_encoder("efficientnet_lite0", 64), load_style("efficientnet_lite0")
    data = objective.Stage1.prepare(eyes().images, eyes(n=5).images, encoder, style)
    there = {}
    for field in dataclasses.fields(data):
        value = getattr(data, field.name)
        grams = isinstance(value, list)
        there[field.name] = [g.to("meta") for g in value] if grams else value.to("meta")
    model = ddpm.FusedUNet(ddpm.build_unet(32, (16, 32)))
    settings = AdaptSettings(steps=WATCHED + 1, batch=2, ema=0.9)
    with mock.patch.object(objective, "adaptation_key", lambda *_: ""):
        objective.adapt_ddpm(model, objective.Stage1(**there), settings, RUN)


def pretrain():
    small = dict(image_size=32, patch=8, dim=32, depth=1, heads=2, decoder_dim=32)
    settings = MaeSettings(steps=WATCHED + 1, batch=4, warmup=1, decoder_heads=2, **small)
    pretrain_mae(eyes().images, settings, RUN)


def segment():
    lora = LoraSettings(rank=2, alpha=4)
    foundation = build_foundation("vit_tiny_patch16_224", "random", "lora", lora, 32)
    pairs = tuning.Pairs(eyes(), eyes().images.flip(1), torch.arange(12) % 3 > 0)
    settings = SegmentSettings(steps=WATCHED + 1, batch=6, statistics="running")
    with mock.patch.object(tuning, "_data_key", lambda *_: ""):
        tuning.train_segmenter(pairs, SegmentationModel(foundation), settings, RUN)


LOOPS = [train_source_ddpm, warm_up, adapt, pretrain, segment]


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_an_ordinary_update_stays_on_the_device(loop):
    with watched() as seen:
        loop()
    assert seen == []


PLANTED = {
    "a number that is read": (lambda x: x.mean().item(), "cannot be called on meta tensors"),
    "noise that the CPU draws": (lambda x: torch.randn(2), "drawn on the CPU: randn"),
    "a copy to the device": (lambda x: torch.ones(2).to(x.device), "copy: _to_copy"),
    "a choice by what a tensor holds": (lambda x: x[x > 0], "nonzero"),
}


@pytest.mark.parametrize("planted, told", PLANTED.values(), ids=PLANTED)
def test_what_is_planted_is_found(planted, told):
    plain = ddpm.ddpm_loss

    def spoiled(eps_hat, eps, *more):
        planted(eps)
        return plain(eps_hat, eps, *more)

    with mock.patch.object(ddpm, "ddpm_loss", spoiled), watched() as seen:
        try:
            train_source_ddpm()
        except (RuntimeError, NotImplementedError) as error:
            seen.append(str(error))  # meta has no numbers
    assert len(seen) == 1 and told in seen[0]


def test_an_interrupted_run_meets_the_same_noise(tmp_path):
    "Noise of the device hangs on run and step alone: in two sittings as in one."
    settings = DDPMSettings(channels=[16, 32], steps=6, batch=4)
    here = RUN.replace(device="cpu")
    whole, _ = ddpm.train_ddpm(eyes().images, settings, here)
    sittings = here.replace(checkpoint=tmp_path / "ddpm.pt")
    ddpm.train_ddpm(eyes().images, settings, sittings.replace(until=3))
    again, _ = ddpm.train_ddpm(eyes().images, settings, sittings)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_a_checkpoint_tells_where_its_noise_was_drawn(tmp_path):
    "A run that drew on the device does not go on with the other noise."
    settings = DDPMSettings(channels=[16, 32], steps=2, batch=4)
    run = RUN.replace(device="cpu", checkpoint=tmp_path / "ddpm.pt")
    ddpm.train_ddpm(eyes().images, settings, run)
    with pytest.raises(InputError, match="other settings"):
        ddpm.train_ddpm(eyes().images, settings, run.replace(reproducible=ACROSS_DEVICES))
