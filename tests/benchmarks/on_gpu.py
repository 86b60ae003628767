"""Seconds of an update on a GPU, drawn on the device and as every device would draw.

`python tests/benchmarks/on_gpu.py figures/gpu.json [--device cpu --small]`. Each result is written
when it is there.
"""

import argparse
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from mfmda.core.files import write_json
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

BF16_PEAK = 790e12  # of an H100 or H200, as measured with a large product of matrices
WAYS = (ACROSS_DEVICES, ON_THIS_DEVICE)


def finished(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work, device):
    finished(device)
    start = time.perf_counter()
    work()
    finished(device)
    return time.perf_counter() - start


def an_update(train, device, few, many):
    "Seconds of the first update, and of each later one: train(steps)."
    first = seconds(lambda: train(1), device)
    short = seconds(lambda: train(few), device)
    long = seconds(lambda: train(many), device)
    return dict(first_s=first, update_s=(long - short) / (many - few))


class Cases:
    "What is measured; `small` for a test on a CPU."

    def __init__(self, device, small):
        self.device, self.small = torch.device(device), small
        self.few, self.many = (2, 4) if small else (20, 120)
        n, size = (16, 32) if small else (340, 64)
        self.eyes = load_phantoms("phantom_a", 1, 0, n, size)
        self.shots = load_phantoms("phantom_b", 1, 20000, 10, size)
        self.settings = dict(small=small)

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
        data = Stage1.prepare(
            self.eyes.images, self.shots.images, encoder, style, self.device
        )

        def train(steps):
            model = FusedUNet(build_unet(self.eyes.size, self.unet([32, 64, 128])))
            adapt_ddpm(model, data, AdaptSettings(steps=steps, ema=0.9), self.run(way))

        return an_update(train, self.device, self.few, self.many // 2 + self.few)

    def translate(self, way, channels):
        "The paper's recipe; images a second."
        model = FusedUNet(build_unet(self.eyes.size, self.unet(channels))).to(self.device).eval()
        x, recipe = self.eyes.float_images(), Recipe(ddim_steps=2 if self.small else 25)
        batch = 64 if way == ACROSS_DEVICES else None

        def all_of_them():
            translate(Translator(model), x, recipe, self.run(way), batch=batch)

        took = [seconds(all_of_them, self.device) for _ in range(3)]
        return dict(first_s=took[0], images_per_s=len(x) / min(took[1:]))

    def segment(self, way):
        "Eq. 12 with the paper's ViT-L/16 and LoRA, 224 px, eight pairs."
        name, size = ("vit_tiny_patch16_224", 64) if self.small else ("vit_large_patch16_224", 224)
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
        with FlopCounterMode(display=False) as counted:
            train(1)
        # measured statistics look at every image once more, forward
        flops = counted.get_total_flops()
        return found | dict(flops=flops, of_bf16_peak=flops / found["update_s"] / BF16_PEAK)

    def all(self):
        "name -> way -> what is measured."
        small, large = [32, 64, 128], [64, 128, 256]
        return {
            "DDPM update, 64 px, U-Net 32-64-128, batch 16": lambda w: self.ddpm(w, small, 16),
            "DDPM update, 64 px, U-Net 64-128-256, batch 64": lambda w: self.ddpm(w, large, 64),
            "adaptation update, 64 px, U-Net 32-64-128": self.adapt,
            "translation, 340 images, 64 px, U-Net 64-128-256": lambda w: self.translate(w, large),
            "stage-2 update, ViT-L/16, 224 px, batch 8": self.segment,
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", default="", help="cases whose name begins so")
    args = parser.parse_args()
    cases, found = Cases(args.device, args.small), {}
    for name, measure in cases.all().items():
        if not name.startswith(args.only):
            continue
        for way in WAYS:
            start = time.perf_counter()
            try:
                numbers = measure(way)
            except Exception as error:
                numbers = dict(error=f"{type(error).__name__}: {error}"[:400])
            numbers["measured_in_s"] = round(time.perf_counter() - start, 1)
            found.setdefault(name, {})[way] = numbers
            told = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items())
            print(f"{name} | {way}: {told}", flush=True)
            about = dict(device=device_name(cases.device), versions=package_versions())
            write_json(args.file, about | dict(commit=git_commit(), small=args.small, cases=found))


if __name__ == "__main__":
    main()
