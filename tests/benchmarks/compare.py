"""Each step of this project beside its plain formulation (plain.py): `python tests/benchmarks/compare.py [NAME ...]` times both in turn and writes figures/benchmark.json.

A case runs in a process of its own, and one that is in the file already is replaced; so the file can be made in several sittings. What a case computes is checked before it is timed, and by test_equal.py at small sizes."""
import argparse
import contextlib
import ctypes
import functools
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import plain
from mfmda import ddpm, phantom, translate
from mfmda.adaptor import DynamicInstanceAwareAdaptor
from mfmda.config import BASE, RECIPES, git_commit, load_profile, read_json, versions, write_json
from mfmda.data import augment, draw_augmentation, load_phantoms
from mfmda.encoders import StyleFeatures, clip_encoder, efficientnet_encoder, style_loss
from mfmda.foundation import build_foundation
from mfmda.metrics import bootstrap_interval, surface_distances
from mfmda.segment import Decoder, KnownMaps, SegmentationModel, segmentation_loss, stage2_losses, total_loss
from mfmda.training import spare_memory

root = Path(__file__).resolve().parents[2]


@dataclass
class Case:
    "Two ways to compute the same."
    plain: Callable
    ours: Callable
    shapes: str
    same: Callable                      # raises where they do not agree
    dtype: str = "float32"
    facts: dict = field(default_factory=dict)
    memory: bool = False                # compare what a step needs beyond the weights, instead of its time


CASES = {}


def case(goal, *names, **sizes):
    def register(make):
        for name in names or (make.__name__,):
            CASES[name] = functools.partial(make, **{k: v[name] for k, v in sizes.items()}), goal
        return make
    return register


def eyes(n, size, camera="phantom_a"): return load_phantoms(camera, 0, 0, n, size)


def constant(like):
    "Noise that is the same for every picture, whichever batch it comes in, so that two orders of work can be compared."
    g = torch.Generator().manual_seed(like[0].numel())
    return torch.randn(like.shape[1:], generator=g).expand_as(like).to(like.dtype)


@contextlib.contextmanager
def constant_noise():
    with mock.patch.object(plain, "noise", constant), mock.patch.object(translate, "gaussian", constant), mock.patch.object(ddpm, "gaussian", constant): yield


def back(losses, params, optimizer=None):
    "Losses followed back one after the other, as they come; their values and the sum of their gradients."
    for p in params: p.grad = None
    values = []
    for loss in losses:
        values.append(loss.detach()); loss.backward()
        del loss
    if optimizer is not None: optimizer.step(); return
    return torch.stack(values).sum(), [p.grad for p in params if p.grad is not None]


def agree(a, b, rtol=1e-3):
    "Equal values, and gradients that point the same way and are equally long."
    torch.testing.assert_close(a[0], b[0], rtol=rtol, atol=1e-12)
    assert len(a[1]) == len(b[1]) > 0
    p, q = (torch.cat([g.flatten() for g in grads]) for grads in (a[1], b[1]))
    assert (p - q).norm() <= 10 * rtol * q.norm(), f"gradients differ by {((p - q).norm() / q.norm()).item():.1e} of their length"


@case(10, "style_loss")
def of_style(small=False):
    "L_style with its gradient for the generated pictures."
    b, k, size = (2, 3, 32) if small else (4, 10, 224)
    style = StyleFeatures(); x, y = (eyes(n, size, c).float_images() for n, c in ((b, "phantom_a"), (k, "phantom_b")))
    x.requires_grad_(); kept = style.gram_matrices(y)
    slow = lambda: back([plain.style_loss(style, x, y)], [x]); fast = lambda: back([style_loss(style.gram_matrices(x), kept)], [x])
    return Case(slow, fast, f"{b} generated, {k} targets, {size} px, VGG16", lambda: agree(slow(), fast()))


def stage1(size, small):
    "A model, and what stage 1 looks at, with the paper's VGG."
    p = load_profile("paper" if size == 224 else "real64"); size, channels, b, k = (32, (16, 32), 2, 3) if small else (size, p.ddpm["channels"], 4, 10)
    torch.manual_seed(0); model = translate.FusedUNet(ddpm.build_unet(size, channels)).train(); torch.nn.init.normal_(model.fusion[-1].weight, std=.02)
    encoder = clip_encoder(None) if size == 224 else efficientnet_encoder(96)
    source, targets = eyes(4 * b, size).images, eyes(k, size, "phantom_b").images
    data = translate.Stage1.prepare(source, targets, encoder, StyleFeatures())
    settings = BASE["adapt"] | dict(batch=b, style_relative=False); adaptor = DynamicInstanceAwareAdaptor(encoder.dim)
    params = [*model.parameters(), *adaptor.parameters()]; optimizer = torch.optim.Adam(params, lr=1e-6)
    means = data.f_source.mean(0), data.f_target.mean(0)
    def losses(one):
        for i in (0, 1): torch.manual_seed(i); yield one(i)
    slow = lambda step=None: back(losses(lambda i: plain.stage1_loss(model, adaptor, source, targets, means, encoder, data.style, b, 0, i)), params, step)
    fast = lambda step=None: back(losses(lambda i: translate.stage1_loss(model, adaptor, data, settings, i, 0)["loss"]), params, step)
    def same():
        with constant_noise(): agree(slow(), fast())
    about = f"an update of two micro-steps, batch {b}, {k} targets, {size} px, U-Net {'-'.join(map(str, channels))}, f {encoder.name}, VGG16"
    def spare(): spare_memory(model); settings["low_memory"] = True; fast(optimizer)
    return spare, lambda: slow(optimizer), lambda: fast(optimizer), about, same


@case(3, "stage1_step_64", "stage1_step_224", size=dict(stage1_step_64=64, stage1_step_224=224))
def of_stage1(size, small=False):
    "A stage-1 update."
    _, slow, fast, about, same = stage1(size, small)
    return Case(slow, fast, about, same)


@case(2, "memory_stage1_224")
def of_stage1_memory(small=False):
    "What a stage-1 update needs beyond the weights, with `low_memory`."
    ours, slow, _, about, same = stage1(224, small)
    return Case(slow, ours, about, same, memory=True)


@case(1.2, "ddpm_step")
def of_ddpm(small=False):
    "A training step of the DDPM beside denoising-diffusion-pytorch, with as many parameters."
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    size, b, channels = (32, 2, (16, 32, 64)) if small else (64, 16, (32, 64, 128))
    ours_net = ddpm.build_unet(size, channels); count = lambda m: sum(p.numel() for p in m.parameters())
    made = {dim: count(Unet(dim=dim, dim_mults=(1, 2, 4))) for dim in range(8, 129, 8)}
    dim = min(made, key=lambda d: abs(made[d] - count(ours_net)))
    theirs = GaussianDiffusion(Unet(dim=dim, dim_mults=(1, 2, 4)), image_size=size, timesteps=1000, objective="pred_noise", beta_schedule="cosine")
    images = eyes(b, size).float_images(); optimizers = [torch.optim.Adam(m.parameters(), lr=1e-4) for m in (theirs, ours_net)]
    def slow(): optimizers[0].zero_grad(); theirs(images).backward(); optimizers[0].step()
    def fast():
        optimizers[1].zero_grad(); x0, t = ddpm.to_model(images), torch.randint(0, 1000, (b,)); eps = torch.randn_like(x0)
        ddpm.ddpm_loss(ours_net(ddpm.q_sample(x0, t, eps), t).sample, eps).mean().backward(); optimizers[1].step()
    facts = dict(parameters_plain=made[dim], parameters_ours=count(ours_net))
    def same(): assert abs(made[dim] / count(ours_net) - 1) < (.5 if small else .1), facts
    return Case(slow, fast, f"batch {b}, {size} px; plain: Unet(dim={dim}), ours: {'-'.join(map(str, channels))}", same, facts=facts | dict(library=importlib.metadata.version("denoising-diffusion-pytorch")))


@case(1.5, "translate")
def of_translate(small=False):
    "Translation with the paper's recipe."
    n, size, steps, channels = (3, 32, 4, (16, 32)) if small else (32, 48, 25, (24, 48, 96))
    torch.manual_seed(0); model = translate.FusedUNet(ddpm.build_unet(size, channels)).eval(); torch.nn.init.normal_(model.fusion[-1].weight, std=.02)
    images, recipe = eyes(n, size).float_images(), RECIPES["paper"] | dict(ddim_steps=steps)
    slow = lambda k=n: plain.translate(model, images[:k], recipe["start"], steps, recipe["eta"], recipe["guidance"], recipe["guidance_until"])
    fast = lambda k=n: translate.translate(model, images[:k], recipe)
    def same():
        with constant_noise(): torch.testing.assert_close(slow(3), fast(3), atol=2e-3, rtol=0)
    return Case(slow, fast, f"{n} images, {size} px, {steps} steps, guidance, U-Net {'-'.join(map(str, channels))}", same)


def stage2(trainable, small):
    "The paper's segmentation network with random weights."
    torch.manual_seed(0)
    name, size, b, lora = ("vit_tiny_patch16_224", 64, 2, dict(rank=4, alpha=8)) if small else ("vit_large_patch16_224", 224, 8, dict(rank=8, alpha=16))
    foundation = build_foundation(name, "random", trainable, lora if trainable == "lora" else None, image_size=size)
    network = SegmentationModel(foundation, Decoder(foundation.channels, width=8 if small else 64, growth=2, up="transposed")).train()
    if trainable == "lora":
        for n, p in network.named_parameters():
            if "lora_B" in n: torch.nn.init.normal_(p, std=.02)   # at the start, B is zero and the gradient of A with it
    a, t = eyes(b, size), eyes(b, size, "phantom_b")
    params = [p for p in network.parameters() if p.requires_grad]
    about = f"batch {b}, {size} px, {name}, trains {trainable}"
    return network, a, t, params, torch.optim.SGD(params, lr=1e-6, momentum=.99, nesterov=True), about


def stage2_step(small):
    network, a, t, params, optimizer, about = stage2("lora", small); x, y = a.float_images(), t.float_images()
    def slow():
        for turn in plain.stage2_losses(network, x, y, a.masks): back([turn()], params, optimizer)
    def fast(**how): back([total_loss(stage2_losses(network, x, y, a.masks, **how))], params, optimizer)
    def same():
        network.eval()   # batch normalisation of a batch of pairs is not that of two batches
        agree(back((turn() for turn in plain.stage2_losses(network, x, y, a.masks)), params), back([total_loss(stage2_losses(network, x, y, a.masks))], params)); network.train()
    return network, slow, fast, about, same


@case(1.8, "stage2_step")
def of_stage2(small=False):
    "One batch of stage 2."
    _, slow, fast, about, same = stage2_step(small)
    return Case(slow, fast, about, same)


@case(2, "memory_stage2_224")
def of_stage2_memory(small=False):
    "What a batch of stage 2 needs beyond the weights, with `low_memory`."
    network, slow, fast, about, same = stage2_step(small)
    def ours(): spare_memory(network); fast(low_memory=True)
    return Case(slow, ours, about, same, memory=True)


@case(10, "head_only_epoch")
def of_head(small=False):
    "An epoch of the head alone, after the first."
    network, a, _, params, optimizer, about = stage2("head", small); n = 4 if small else 24
    source = eyes(n, a.size); x, b = source.float_images(), len(a); known = KnownMaps(network.foundation)
    known(x, list(range(n)))
    def epoch(said, step=None):
        out = []
        for index in torch.arange(n).split(b):
            loss = segmentation_loss(network.pyramid_and_logits(x[index], said(index))[1], source.masks[index]); out.append(back([loss], params, step))
        return out
    slow, fast = lambda step=optimizer: epoch(lambda index: None, step), lambda step=optimizer: epoch(lambda index: known(x[index], index.tolist()), step)
    def same():
        network.eval()
        for p, q in zip(slow(None), fast(None)): agree(p, q)
        network.train()
    return Case(slow, fast, f"{n} images, {about}", same)


@case(10, "phantom")
def of_phantom(small=False):
    "Drawing phantoms."
    n, size = (2, 32) if small else (8, 64)
    fast = lambda: phantom.phantom_batch(0, range(n), "phantom_b", size)
    def slow():
        with mock.patch.object(phantom, "_absorbance", plain.absorbance), mock.patch.object(phantom, "_noise", plain.smooth_noise): return fast()
    def same():
        for a, b in zip(slow(), fast()): assert np.abs(a.astype(int) - b.astype(int)).max() <= 1   # sums in another order, then JPEG
    return Case(slow, fast, f"{n} eyes, {size} px", same, "uint8")


@case(10, "augment")
def of_augment(small=False):
    "Augmentation of a batch of pairs with its masks."
    n, size = (2, 32) if small else (16, 64)
    a, b = eyes(n, size), eyes(n, size, "phantom_b"); x, y, g = a.float_images(), b.float_images(), lambda: torch.Generator().manual_seed(0)
    theta, c, light = (v.numpy() for v in draw_augmentation(n, g()))
    both, masks = np.concatenate([x, y]), a.masks.numpy()
    def slow():
        images, moved = plain.augment(both[:n], masks, theta, c[:, 0], light[:, 0]); return np.concatenate([images, plain.augment(both[n:], masks, theta, c[:, 0], light[:, 0])[0]]), moved
    fast = lambda: augment([x, y], a.masks, g())
    def same():
        (images, moved), (ours, ours_moved) = slow(), fast()
        np.testing.assert_allclose(images, torch.cat(ours), atol=2e-3); assert (moved != ours_moved.numpy()).mean() < 2e-3   # nearest pixel: ties
    return Case(slow, fast, f"{n} pairs, {size} px", same)


@case(10, "hd95")
def of_hd95(small=False):
    "HD95 of discs at the size of the stored masks."
    n, size = (2, 64) if small else (8, 256)
    regions = [(m > 0).numpy() for m in eyes(n + 1, size).masks]; pairs = list(zip(regions, regions[1:]))
    slow, fast = lambda: [plain.hd95(*p) for p in pairs], lambda: [surface_distances(*p)[0] for p in pairs]
    return Case(slow, fast, f"{n} pairs of discs, {size} px", lambda: np.testing.assert_allclose(slow(), fast(), atol=1e-3), "bool")


@case(10, "bootstrap")
def of_bootstrap(small=False):
    "The interval of a mean over a hundred images."
    values, n = np.random.default_rng(0).random(100), 200 if small else 10_000
    slow, fast = lambda: plain.bootstrap(values, n), lambda: bootstrap_interval(values, n)
    return Case(slow, fast, f"100 images, {n} draws", lambda: np.testing.assert_allclose(slow(), fast(), atol=.02), "float64")


def tflop(run):
    "TFLOP of a run, without attention's own products, which torch does not count on a CPU."
    from torch.utils.flop_counter import FlopCounterMode
    with FlopCounterMode(display=False) as counted: run()
    return counted.get_total_flops() / 1e12


def peak_tflops(n=2048):
    "What this machine reaches where arithmetic is all there is: a product of two large matrices."
    a, b, took = torch.randn(n, n), torch.randn(n, n), []
    for _ in range(8): start = time.perf_counter(); a @ b; took.append(time.perf_counter() - start)
    return 2 * n**3 / min(took) / 1e12


def step_memory(run):
    "MiB that `run` needs at its peak, beyond what is there before."
    status = lambda name: int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)).split()[1]) / 1024
    Path("/proc/self/clear_refs").write_text("5"); before = status("VmRSS")
    start = time.perf_counter(); run()
    return status("VmHWM") - before, time.perf_counter() - start


def child(*words):
    "What this file prints in a process of its own."
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
    if done.returncode: sys.exit(f"{' '.join(words)}: failed\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def one(name, runs, way=None):
    "Check a case, then time both ways in turn; or measure the memory of one way."
    make, goal = CASES[name]; load = os.getloadavg()[0]
    c = make(); times = {"plain": [], "ours": []}
    if way:                                          # of memory: a process for each way, whose heap the other has not cut into pieces
        getattr(c, way)(); ctypes.CDLL(None).malloc_trim(0)          # the optimiser's state is there before it is measured
        return dict(zip((f"{way}_mb", f"{way}_s"), step_memory(getattr(c, way))))
    c.same()
    found = dict(name=name, what=make.func.__doc__, device="cpu", shapes=c.shapes, dtype=c.dtype, goal=goal, runs=runs, threads=torch.get_num_threads(), load_before=round(load, 2))
    if c.memory:
        for way in times: found |= child("--one", name, "--way", way)
        return found | dict(ratio=found["plain_mb"] / found["ours_mb"], runs=1) | c.facts
    for k in range(runs):
        for way in list(times)[::1 if k % 2 else -1]:
            start = time.perf_counter(); getattr(c, way)(); times[way].append(time.perf_counter() - start)
    work = {way: tflop(getattr(c, way)) for way in times}
    if work["ours"]: found |= dict(tflop_plain=work["plain"], tflop_ours=work["ours"], peak_tflops=(peak := peak_tflops()), floor_s=work["ours"] / peak)
    median = {way: statistics.median(t) for way, t in times.items()}
    return found | dict(plain_s=median["plain"], ours_s=median["ours"], ratio=median["plain"] / median["ours"], range_plain_s=[min(times["plain"]), max(times["plain"])], range_ours_s=[min(times["ours"]), max(times["ours"])]) | c.facts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES)); parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=root / "figures" / "benchmark.json"); parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS); parser.add_argument("--way", choices=("plain", "ours"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.names) - set(CASES): parser.error(f"unknown case {', '.join(sorted(unknown))}; expected some of {', '.join(CASES)}")
    if args.one: print("\n" + json.dumps(one(args.names[0], args.runs, args.way))); return
    for name in args.names or CASES:
        if name.startswith("memory_") and not Path("/proc/self/clear_refs").exists(): print(f"{name:20} left out: it reads Linux's account of memory"); continue
        new = child("--one", name, "--runs", str(args.runs)) | dict(versions=versions(), commit=git_commit())
        entries = read_json(args.out) if args.out.exists() else []
        write_json(args.out, sorted([e for e in entries if (e["name"], e["device"]) != (name, new["device"])] + [new], key=lambda e: list(CASES).index(e["name"])))
        print(f"{name:20} plain {new['plain_s']:8.3f} s  ours {new['ours_s']:8.3f} s" + (f"  {new['plain_mb']:.0f} / {new['ours_mb']:.0f} MiB" if "plain_mb" in new else "") + f"  ratio {new['ratio']:.2f} (goal {new['goal']})", flush=True)


if __name__ == "__main__": main()
