"""Seconds of an update on a GPU, drawn on the device and as every device would draw."""

import json
import time
from pathlib import Path

import torch

from mfmda.core.files import InputError, write_json
from mfmda.core.runtime import (
    ACROSS_DEVICES,
    ON_THIS_DEVICE,
    device_name,
    git_commit,
    package_versions,
)
from mfmda.core.training import RunOptions
from mfmda.data.sets import load_phantoms
from mfmda.stage1.ddpm import FusedUNet, build_unet, train_ddpm
from mfmda.stage1.encoders import load_encoder, load_style
from mfmda.stage1.objective import Stage1, adapt_ddpm
from mfmda.stage1.settings import AdaptSettings, DDPMSettings, Recipe
from mfmda.stage1.translate import Translator, translate
from mfmda.stage2.foundation import build_foundation
from mfmda.stage2.segmenter import Decoder, SegmentationModel
from mfmda.stage2.settings import LoraSettings, SegmentSettings
from mfmda.stage2.tuning import Pairs, train_segmenter
from mfmda.study.costs import flops_of, seconds_of
from mfmda.study.pipeline import new_mfm
from mfmda.study.profiles import load_profile

BF16_PEAK = 790e12  # of an H100 or H200, as measured with a large product of matrices
WAYS = (ACROSS_DEVICES, ON_THIS_DEVICE)


def an_update(train, device, few, many):
    "Seconds of the first update, and of each later one: train(steps)."
    first, short, long = (seconds_of(train, n, device) for n in (1, few, many))
    return dict(first_s=first, update_s=(long - short) / (many - few))


class Cases:
    "What is measured; `small` for a test on a CPU."

    def __init__(self, device, small):
        self.device, self.small = torch.device(device), small
        self.few, self.many = (2, 4) if small else (20, 120)
        n, size = (16, 32) if small else (340, 64)
        self.eyes = load_phantoms("phantom_a", 1, 0, n, size)
        self.shots = load_phantoms("phantom_b", 1, 20000, 10, size)

    def run(self, way):
        return RunOptions(precision="bf16", device=self.device, reproducible=way)

    def unet(self, channels):
        return [8, 16] if self.small else channels

    def ddpm(self, way, channels, batch):
        "Eq. 2 on images of 64 px."
        how = DDPMSettings(channels=self.unet(channels), batch=batch)

        def train(steps):
            train_ddpm(self.eyes.images, how.replace(steps=steps), self.run(way))

        return an_update(train, self.device, self.few, self.many)

    def adapt(self, way):
        "Eq. 8, two micro-steps of four images."
        encoder = load_encoder("efficientnet_lite0", 96)
        style = load_style("efficientnet_lite0")
        data = Stage1.prepare(self.eyes.images, self.shots.images, encoder, style, self.device)

        def train(steps):
            model = FusedUNet(build_unet(self.eyes.size, self.unet([32, 64, 128])))
            adapt_ddpm(model, data, AdaptSettings(steps=steps, ema=0.9), self.run(way))

        return an_update(train, self.device, self.few, self.many // 2 + self.few)

    def translate(self, way, channels):
        "The paper's recipe; images a second."
        model = (
            FusedUNet(build_unet(self.eyes.size, self.unet(channels))).to(self.device).eval()
        )
        x, recipe = self.eyes.float_images(), Recipe(ddim_steps=2 if self.small else 25)
        batch = 64 if way == ACROSS_DEVICES else None

        def all_of_them(_):
            translate(Translator(model), x, recipe, self.run(way), batch=batch)

        took = [seconds_of(all_of_them, len(x), self.device) for _ in range(3)]
        return dict(first_s=took[0], images_per_s=len(x) / min(took[1:]))

    def segment(self, way):
        "Eq. 12 with the paper's ViT-L/16 and LoRA, 224 px, eight pairs."
        name, size = (
            ("vit_tiny_patch16_224", 64) if self.small else ("vit_large_patch16_224", 224)
        )
        eyes = load_phantoms("phantom_a", 1, 0, 16, size)
        how = SegmentSettings(batch=8, statistics="running")

        def network():
            torch.manual_seed(0)
            lora = LoraSettings(rank=8, alpha=16)
            foundation = build_foundation(name, "random", "lora", lora, size)
            return SegmentationModel(foundation, Decoder(foundation.channels))

        pairs = Pairs(eyes, eyes.images.flip(1))

        def train(steps):
            train_segmenter(pairs, network(), how.replace(steps=steps), self.run(way))

        found = an_update(train, self.device, self.few // 2, self.many // 2)
        flops = flops_of(train, 1)
        return found | dict(flops=flops, of_bf16_peak=flops / found["update_s"] / BF16_PEAK)

    def paper_ddpm(self, way):
        "Eq. 2 at full size, two micro-steps an update; hours of all updates, extrapolated."
        how = load_profile("paper").ddpm
        size = 32 if self.small else 224
        how = how.replace(channels=self.unet(how.channels))
        images = load_phantoms("phantom_a", 1, 0, 32, size).images

        def train(steps):
            train_ddpm(images, how.replace(steps=steps), self.run(way))

        return self.full_size(train, how.steps)

    def paper_segment(self, way):
        "Eq. 12 at full size."
        profile, size = load_profile("paper"), 64 if self.small else 224
        name = "vit_tiny_patch16_224" if self.small else "vit_large_patch16_224"
        profile = profile.replace(foundation=dict(image_size=size))
        eyes, how = load_phantoms("phantom_a", 1, 0, 16, size), profile.segment

        def train(steps):
            network = new_mfm(profile, name, "random", 0)
            pairs = Pairs(eyes, eyes.images.flip(1))
            train_segmenter(pairs, network, how.replace(steps=steps), self.run(way))

        return self.full_size(train, how.steps)

    def full_size(self, train, updates):
        "Seconds of an update, its share of the peak, its memory, and hours of all."
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        found = an_update(train, self.device, *((1, 2) if self.small else (3, 8)))
        flops = flops_of(train, 1)
        found |= dict(of_bf16_peak=flops / found["update_s"] / BF16_PEAK)
        if self.device.type == "cuda":
            found["memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        return found | dict(extrapolated_hours=found["update_s"] * updates / 3600)

    def all(self):
        "name -> the ways in which it is measured, and what measures."
        small, large = [32, 64, 128], [64, 128, 256]
        here = (ON_THIS_DEVICE,)
        return {
            "DDPM update, 64 px, U-Net 32-64-128, batch 16": (
                WAYS,
                lambda way: self.ddpm(way, small, 16),
            ),
            "DDPM update, 64 px, U-Net 64-128-256, batch 64": (
                WAYS,
                lambda way: self.ddpm(way, large, 64),
            ),
            "translation, 340 images, 64 px, U-Net 64-128-256": (
                WAYS,
                lambda way: self.translate(way, large),
            ),
            "adaptation update, 64 px, U-Net 32-64-128": (WAYS, self.adapt),
            "stage-2 update, ViT-L/16, 224 px, batch 8": (WAYS, self.segment),
            "paper: DDPM update": (here, self.paper_ddpm),
            "paper: stage-2 update": (here, self.paper_segment),
        }


def measure(file: Path, device: str, small: bool, end: float):
    "Write what is measured before `end` (of time.monotonic), case by case; paper's steps last."
    cases, found = Cases(device, small), {}
    about = dict(device=device_name(cases.device), versions=package_versions())
    about |= dict(commit=git_commit(), small=small)
    file.parent.mkdir(parents=True, exist_ok=True)
    for name, (ways, case) in cases.all().items():
        for way in ways:
            if time.monotonic() > end:
                return
            start = time.perf_counter()
            try:
                numbers = case(way)
            except (RuntimeError, InputError) as error:
                numbers = dict(error=f"{type(error).__name__}: {error}"[:400])
            numbers["measured_in_s"] = round(time.perf_counter() - start, 1)
            found.setdefault(name, {})[way] = numbers
            print(f"{name} | {way}: {json.dumps(numbers)}", flush=True)
            write_json(file, about | dict(cases=found))
