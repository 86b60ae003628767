"""Steps of this project, each beside its plain formulation (plain.py).

A case says how to do the same both ways, and checks that it is the same. It can be built at a small
size, for test_equal.py, or at the size at which compare.py measures it.
"""

import contextlib
import functools
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple
from unittest import mock

import numpy as np
import plain
import torch

from mfmda.core.runtime import sample_noise
from mfmda.core.training import RunOptions, checkpoint_gradients
from mfmda.data import phantom
from mfmda.data.sets import augment, draw_augmentation, load_phantoms
from mfmda.stage1 import ddpm, objective, translate
from mfmda.stage1.adaptor import DynamicInstanceAwareAdaptor
from mfmda.stage1.encoders import StyleFeatures, clip_encoder, efficientnet_encoder, style_loss
from mfmda.stage1.settings import AdaptSettings
from mfmda.stage2.foundation import build_foundation
from mfmda.stage2.segmenter import Decoder, SegmentationModel
from mfmda.stage2.settings import LoraSettings, SegmentSettings
from mfmda.stage2.tuning import (
    Batch,
    FeatureCache,
    segmentation_loss,
    stage2_losses,
    total_loss,
)
from mfmda.study.metrics import surface_distances
from mfmda.study.profiles import load_profile
from mfmda.study.statistics import bootstrap_interval


@dataclass
class Case:
    "Two ways to compute the same."

    plain: Callable
    ours: Callable
    same: Callable  # raises where they do not agree
    shapes: str  # in words
    dtype: str = "float32"
    facts: dict = field(default_factory=dict)
    memory: bool = False  # compare what a step needs beyond the weights, instead of its time


class Entry(NamedTuple):
    "How a case is built, and by how much the plain way should take longer."

    make: Callable  # small=False -> Case
    goal: float
    what: str


CASES = {}  # name -> Entry


def case(name, goal, *given):
    "Register a function as the case `name`; it is called with what is `given`."

    def register(make):
        CASES[name] = Entry(functools.partial(make, *given), goal, make.__doc__)
        return make

    return register


def eyes(n, size, camera="phantom_a"):
    return load_phantoms(camera, 0, 0, n, size)


def count(network):
    return sum(p.numel() for p in network.parameters())


def in_words(channels):
    return "-".join(map(str, channels))


# ---- losses that are followed back ----


def follow(losses, params):
    "Losses followed back one after the other, as they come: their sum, and the gradients."
    total = 0
    for p in params:
        p.grad = None
    for loss in losses:
        total = total + loss.detach()
        loss.backward()
        del loss  # its graph is gone before the next is built
    return total, [p.grad for p in params if p.grad is not None]


def agree(a, b, rtol=1e-3):
    "Equal values, and gradients that point the same way and are equally long."
    torch.testing.assert_close(a[0], b[0], rtol=rtol, atol=1e-12)
    assert len(a[1]) == len(b[1]) > 0
    p, q = (torch.cat([g.flatten() for g in gradients]) for gradients in (a[1], b[1]))
    apart = ((p - q).norm() / q.norm()).item()
    assert apart <= 10 * rtol, f"gradients differ by {apart:.1e} of their length"


@dataclass
class Step:
    "An update of weights, whose losses can be computed both ways."

    plain_losses: Callable  # () -> losses, one after the other
    our_losses: Callable  # low_memory=False -> losses, one after the other
    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    shapes: str

    @property
    def params(self):
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def plain(self):
        follow(self.plain_losses(), self.params)
        self.optimizer.step()

    def ours(self):
        follow(self.our_losses(), self.params)
        self.optimizer.step()

    def ours_in_low_memory(self):
        checkpoint_gradients(self.network)
        follow(self.our_losses(low_memory=True), self.params)
        self.optimizer.step()

    def same(self, low_memory=False):
        ours = follow(self.our_losses(low_memory), self.params)
        agree(follow(self.plain_losses(), self.params), ours)

    def timed(self, context):
        "The case that compares times, checked in a context such as `constant_noise()`."
        return Case(self.plain, self.ours, context(self.same), self.shapes)

    def weighed(self, context):
        "The case that compares memory."
        same = context(functools.partial(self.same, low_memory=True))
        return Case(self.plain, self.ours_in_low_memory, same, self.shapes, memory=True)


@case("style_loss", 10)
def of_style(small=False):
    "L_style with its gradient for the generated pictures."
    b, k, size = (2, 3, 32) if small else (4, 10, 224)
    style = StyleFeatures()
    x, y = eyes(b, size).float_images(), eyes(k, size, "phantom_b").float_images()
    x.requires_grad_()
    kept = style.gram_matrices(y)

    def slow():
        return follow([plain.style_loss(style, x, y)], [x])

    def fast():
        return follow([style_loss(style.gram_matrices(x), kept)], [x])

    shapes = f"{b} generated, {k} targets, {size} px, VGG16"
    return Case(slow, fast, lambda: agree(slow(), fast()), shapes)


# ---- stage 1 ----


def constant(like):
    "Noise that is the same for every picture, whichever batch it comes in."
    g = torch.Generator().manual_seed(like[0].numel())
    return torch.randn(like.shape[1:], generator=g).expand_as(like).to(like.dtype)


@contextlib.contextmanager
def constant_noise():
    "Makes two orders of work comparable."
    drawn_in = [
        (plain, "noise"),
        (ddpm, "sample_noise"),
        (ddpm, "global_noise"),
        (objective, "global_noise"),
        (translate, "sample_noise"),
    ]
    with contextlib.ExitStack() as stack:
        for module, name in drawn_in:
            stack.enter_context(mock.patch.object(module, name, constant))
        yield


def fused_unet(size, channels):
    "A U-Net whose content fusion says something, as it does after its warm-up."
    torch.manual_seed(0)
    model = ddpm.FusedUNet(ddpm.build_unet(size, channels))
    torch.nn.init.normal_(model.fusion[-1].weight, std=0.02)
    return model


def stage1_step(size, small):
    "An update of stage 1 with the paper's VGG, and at 224 px with its encoder."
    channels = load_profile("paper" if size == 224 else "real64").ddpm.channels
    encoder = clip_encoder(None) if size == 224 else efficientnet_encoder(96)
    size, channels, b, k = (32, (16, 32), 2, 3) if small else (size, channels, 4, 10)
    model = fused_unet(size, channels).train()
    source, shots = eyes(4 * b, size).images, eyes(k, size, "phantom_b").images
    data = objective.Stage1.prepare(source, shots, encoder, StyleFeatures())
    settings = AdaptSettings(batch=b, style_relative=False)
    adaptor = DynamicInstanceAwareAdaptor(encoder.dim)
    optimizer = torch.optim.Adam([*model.parameters(), *adaptor.parameters()], lr=1e-6)

    def plain_losses():
        for i in (0, 1):
            torch.manual_seed(i)
            yield plain.stage1_loss(model, adaptor, data, b, 0, i)

    def our_losses(low_memory=False):
        how = settings.replace(low_memory=low_memory)
        for i in (0, 1):
            torch.manual_seed(i)
            drawn = objective.draw_stage1(data, b, i, 0)
            yield objective.stage1_loss(model, adaptor, data, how, drawn, RunOptions())["loss"]

    about = f"an update of two micro-steps, batch {b}, {k} targets, {size} px, "
    about += f"U-Net {in_words(channels)}, f {encoder.name}, VGG16"
    return Step(plain_losses, our_losses, model, optimizer, about)


@case("stage1_step_224", 3, 224)
@case("stage1_step_64", 3, 64)
def of_stage1(size, small=False):
    "A stage-1 update."
    return stage1_step(size, small).timed(constant_noise())


@case("memory_stage1_224", 2)
def of_stage1_memory(small=False):
    "What a stage-1 update needs beyond the weights, with `low_memory`."
    return stage1_step(224, small).weighed(constant_noise())


@case("ddpm_step", 1.2)
def of_ddpm(small=False):
    "A training step of the DDPM beside denoising-diffusion-pytorch, with as many parameters."
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    size, b, channels = (32, 2, (16, 32, 64)) if small else (64, 16, (32, 64, 128))
    unet = ddpm.build_unet(size, channels)
    made = {dim: count(Unet(dim=dim, dim_mults=(1, 2, 4))) for dim in range(8, 129, 8)}
    dim = min(made, key=lambda dim: abs(made[dim] - count(unet)))
    how = dict(timesteps=1000, objective="pred_noise", beta_schedule="cosine")
    theirs = GaussianDiffusion(Unet(dim=dim, dim_mults=(1, 2, 4)), image_size=size, **how)
    images = eyes(b, size).float_images()
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-4) for m in (theirs, unet)]

    def slow():
        optimizers[0].zero_grad()
        theirs(images).backward()
        optimizers[0].step()

    def fast():
        optimizers[1].zero_grad()
        x0, t = ddpm.to_model(images), torch.randint(0, 1000, (b,))
        eps = sample_noise(x0)
        eps_hat = unet(ddpm.q_sample(x0, t, eps), t).sample
        ddpm.ddpm_loss(eps_hat, eps).mean().backward()
        optimizers[1].step()

    facts = dict(parameters_plain=made[dim], parameters_ours=count(unet))
    facts["library"] = importlib.metadata.version("denoising-diffusion-pytorch")

    def same():
        assert abs(made[dim] / count(unet) - 1) < (0.5 if small else 0.1), facts

    shapes = f"batch {b}, {size} px; plain: Unet(dim={dim}), ours: {in_words(channels)}"
    return Case(slow, fast, same, shapes, facts=facts)


@case("translate", 1.5)
def of_translate(small=False):
    "Translation with the paper's recipe."
    n, size, steps, channels = (3, 32, 4, (16, 32)) if small else (32, 48, 25, (24, 48, 96))
    model = fused_unet(size, channels).eval()
    recipe = load_profile("mini").recipes["paper"].replace(ddim_steps=steps)
    images = eyes(n, size).float_images()

    def slow(k=n):
        return plain.translate(model, images[:k], recipe)

    def fast(k=n):
        return translate.translate(translate.Translator(model), images[:k], recipe)

    @constant_noise()
    def same():
        torch.testing.assert_close(slow(3), fast(3), atol=2e-3, rtol=0)

    about = f"{n} images, {size} px, {steps} steps, guidance, U-Net {in_words(channels)}"
    return Case(slow, fast, same, about)


# ---- stage 2 ----


def paper_network(trainable, small):
    "The paper's segmentation network with random weights; pixels and batch of its input."
    torch.manual_seed(0)
    name, size, b = ("vit_large_patch16_224", 224, 8)
    lora, decoder = LoraSettings(rank=8, alpha=16), dict(width=64)
    if small:
        name, size, b = ("vit_tiny_patch16_224", 64, 2)
        lora, decoder = LoraSettings(rank=4, alpha=8), dict(width=8)
    foundation = build_foundation(name, "random", trainable, lora, size)
    decoder = Decoder(foundation.channels, growth=2, up="transposed", **decoder)
    network = SegmentationModel(foundation, decoder).train()
    for parameter, p in network.named_parameters():
        if "lora_B" in parameter:  # at the start, B is zero and the gradient of A with it
            torch.nn.init.normal_(p, std=0.02)
    return network, size, b, f"batch {b}, {size} px, {name}, trains {trainable}"


def released_optimizer(network):
    params = [p for p in network.parameters() if p.requires_grad]
    return torch.optim.SGD(params, lr=1e-6, momentum=0.99, nesterov=True)


@contextlib.contextmanager
def evaluation(network):
    "Batch normalisation of a batch of pairs is not that of two batches: without it, they agree."
    network.eval()
    try:
        yield
    finally:
        network.train()


def stage2_step(small):
    "A batch of stage 2."
    network, size, b, about = paper_network("lora", small)
    source, other = eyes(b, size), eyes(b, size, "phantom_b")
    x, y, mask = source.float_images(), other.float_images(), source.masks
    batch = Batch(x, mask, y)

    def our_losses(low_memory=False):
        settings = SegmentSettings(low_memory=low_memory)
        yield total_loss(stage2_losses(network, batch, settings))

    def plain_losses():
        return plain.stage2_losses(network, x, y, mask)

    return Step(plain_losses, our_losses, network, released_optimizer(network), about)


@case("stage2_step", 1.8)
def of_stage2(small=False):
    "One batch of stage 2."
    step = stage2_step(small)
    return step.timed(evaluation(step.network))


@case("memory_stage2_224", 2)
def of_stage2_memory(small=False):
    "What a batch of stage 2 needs beyond the weights, with `low_memory`."
    step = stage2_step(small)
    return step.weighed(evaluation(step.network))


@case("head_only_epoch", 10)
def of_head(small=False):
    "An epoch of the head alone, after the first."
    network, size, b, about = paper_network("head", small)
    n = 4 if small else 24
    source, optimizer = eyes(n, size), released_optimizer(network)
    images, batches = source.float_images(), torch.arange(n).split(b)
    cache = FeatureCache(network.foundation)
    cache(images, list(range(n)))

    def losses(maps_of):
        for index in batches:
            x = images[index]
            _, logits = network.pyramid_and_logits(x, maps_of(x, index.tolist()))
            yield segmentation_loss(logits, source.masks[index])

    step = Step(
        lambda: losses(lambda x, names: None),
        lambda: losses(cache),
        network,
        optimizer,
        f"{n} images, {about}",
    )

    def epoch(one_batch_at_a_time):
        for loss in one_batch_at_a_time:
            follow([loss], step.params)
            optimizer.step()

    @evaluation(network)
    def same():
        for a, b in zip(step.plain_losses(), step.our_losses()):
            agree(follow([a], step.params), follow([b], step.params))

    return Case(
        lambda: epoch(step.plain_losses()), lambda: epoch(step.our_losses()), same, step.shapes
    )


# ---- pictures and scores ----


@case("phantom", 10)
def of_phantom(small=False):
    "Drawing phantoms."
    n, size = (2, 32) if small else (8, 64)

    def fast():
        return phantom.phantom_batch(0, range(n), "phantom_b", size)

    def slow():
        slow_parts = dict(_absorbance=plain.absorbance, _noise=plain.smooth_noise)
        with mock.patch.multiple(phantom, **slow_parts):
            return fast()

    def same():
        for a, b in zip(slow(), fast()):
            # sums in another order, then JPEG
            assert np.abs(a.astype(int) - b.astype(int)).max() <= 1

    return Case(slow, fast, same, f"{n} eyes, {size} px", "uint8")


@case("augment", 10)
def of_augment(small=False):
    "Augmentation of a batch of pairs with its masks."
    n, size = (2, 32) if small else (16, 64)
    a, b = eyes(n, size), eyes(n, size, "phantom_b")
    x, y = a.float_images(), b.float_images()

    def generator():
        return torch.Generator().manual_seed(0)

    theta, contrast, brightness = (v.numpy() for v in draw_augmentation(n, generator()))
    light = contrast.ravel(), brightness.ravel()
    masks = a.masks.numpy()

    def slow():
        first, moved = plain.augment(x.numpy(), masks, theta, *light)
        second, _ = plain.augment(y.numpy(), masks, theta, *light)
        return np.concatenate([first, second]), moved

    def fast():
        return augment([x, y], a.masks, generator())

    def same():
        (images, moved), (ours, our_masks) = slow(), fast()
        np.testing.assert_allclose(images, torch.cat(ours), atol=2e-3)
        assert (moved != our_masks.numpy()).mean() < 2e-3  # nearest pixel: ties

    return Case(slow, fast, same, f"{n} pairs, {size} px")


@case("hd95", 10)
def of_hd95(small=False):
    "HD95 of discs at the size of the stored masks."
    n, size = (2, 64) if small else (8, 256)
    discs = [(mask > 0).numpy() for mask in eyes(n + 1, size).masks]
    pairs = list(zip(discs, discs[1:]))

    def slow():
        return [plain.hd95(*pair) for pair in pairs]

    def fast():
        return [surface_distances(*pair)[0] for pair in pairs]

    def same():
        np.testing.assert_allclose(slow(), fast(), atol=1e-3)

    return Case(slow, fast, same, f"{n} pairs of discs, {size} px", "bool")


@case("bootstrap", 10)
def of_bootstrap(small=False):
    "The interval of a mean over a hundred images."
    values, n = np.random.default_rng(0).random(100), 200 if small else 10_000

    def slow():
        return plain.bootstrap(values, n)

    def fast():
        return bootstrap_interval(values, n)

    def same():
        np.testing.assert_allclose(slow(), fast(), atol=0.02)

    return Case(slow, fast, same, f"100 images, {n} draws", "float64")
