"""The same steps, written straight from the equations and from the schedule of the released code
(paper.md): nothing is kept for later, nothing is done for several pictures at once."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.interpolate import BSpline

from mfmda.core.training import batch_indices
from mfmda.data import phantom
from mfmda.stage1.adaptor import distribution_consistency_loss
from mfmda.stage1.ddpm import (
    ddim_step,
    ddim_times,
    ddpm_loss,
    decode,
    encode,
    estimate_x0,
    flip,
    q_sample,
    to_image,
    to_model,
)
from mfmda.stage1.translate import low_pass

noise = torch.randn_like


def style_loss(style, generated, targets):
    "Every generated picture beside every target, each through the network again."

    def gram(x):
        c, h, w = x.shape[1:]
        return x.flatten(2) @ x.flatten(2).mT / (c * h * w)

    loss = 0
    for x in generated:
        for y in targets:
            for a, b in zip(style(x[None]), style(y[None])):
                loss = loss + (gram(a) - gram(b)).square().mean()
    return loss / (len(generated) * len(targets))


def fused(model, x_t, t, condition):
    "Phasic content fusion: the condition is encoded whether it can be heard or not."
    m = (1 / (1 + torch.exp(300 - t.float()))).view(-1, 1, 1, 1)
    h, skips, emb = encode(model.unet, x_t, t)
    E, _, _ = encode(model.unet, q_sample(condition, t, noise(condition)), t)
    heard = m * E + (1 - m) * noise(E)
    return decode(model.unet, h + model.fusion(torch.cat([h, heard], 1)), skips, emb)


def target_diffusion(model, x0, t):
    "L_DDPM of target pictures, one loss for each."
    eps = noise(x0)
    return ddpm_loss(fused(model, q_sample(x0, t, eps), t, x0), eps)


def stage1_loss(model, adaptor, data, batch, seed, i):
    "Eq. 8 for micro-step i: targets and their features are seen anew by every generated picture."
    x_T = data.target[batch_indices(len(data.target), batch, seed + 1, i)].float() / 255
    x_T = to_model(flip(x_T))
    if i % 2:
        t = torch.randint(0, 300, (batch,))
        return target_diffusion(model, x_T, t).mean() / 5
    t = torch.randint(300, 800, (batch,))
    diffusion = target_diffusion(model, x_T, t)
    image = data.source[batch_indices(len(data.source), batch, seed, i // 2)].float() / 255
    x_S = to_model(image)
    x_t = q_sample(x_S, t, noise(x_S))
    generated = to_image(estimate_x0(x_t, t, fused(model, x_t, t, x_S), clip=False))
    with torch.no_grad():
        f_source = data.encoder(image)
    s_mean, t_mean = data.f_source.mean(0), data.f_target.mean(0)
    gate = adaptor.gating(f_source)
    delta = gate * adaptor.delta_net(f_source - t_mean) + (1 - gate) * (t_mean - s_mean)
    consistency = distribution_consistency_loss(data.encoder(generated), f_source, delta)
    style = style_loss(data.style, generated, data.target.float() / 255)
    alpha = 20 ** (t.float() / 1000)
    return alpha.mean() * (consistency + style) + ((20**0.9 - alpha) * diffusion).mean()


@torch.no_grad()
def translate(model, images, recipe):
    "Picture by picture; state and path of the guidance each have the network to themselves."
    out = []
    for image in images:
        x0 = to_model(image[None])
        times = ddim_times(recipe.start, recipe.ddim_steps)
        x = q_sample(x0, torch.full((1,), times[0][0]), noise(x0))
        for t, s in times:
            at = torch.full((1,), t)
            y = q_sample(x0, at, noise(x0))
            x = ddim_step(x, fused(model, x, at, x0), t, s, recipe.eta, noise(x))
            if s >= recipe.guidance_until:
                y = ddim_step(y, fused(model, y, at, x0), t, s, recipe.eta, noise(y))
                x = x - low_pass(x, recipe.guidance) + low_pass(y, recipe.guidance)
        out.append(to_image(x))
    return torch.cat(out)


def stage2_losses(network, x_source, x_translated, mask):
    """The released schedule's three turns, each with passes of its own.

    Four passes forward, and three backward when each is followed back.
    """

    def bce(logits):
        each = [(logits[:, c], (mask > c).float()) for c in (0, 1)]
        return sum(F.binary_cross_entropy_with_logits(*pair) for pair in each)

    a, b = network.foundation.features(x_source), network.foundation.features(x_translated)
    yield sum(1 - F.cosine_similarity(p, q, dim=1).mean() for p, q in zip(a, b)) / len(a)
    del a, b
    yield bce(network(x_source))
    yield bce(network(x_translated))


def absorbance(vessels, size):
    "Vessels: every point of every vessel is asked of every pixel."
    gx, gy = np.meshgrid(*[np.arange(size) + 0.5] * 2)
    out = np.zeros((size, size))
    for x, y, r, ink in zip(*phantom._refine(vessels, size)):
        out += np.clip(r + 0.5 - np.hypot(gx - x, gy - y), 0, min(1, 2 * r)) * ink
    return out.ravel()


def smooth_noise(lattice, size):
    "Smooth noise: the splines are made anew for every field."

    def spline(n):
        knots = np.linspace(-3 / (n - 3), 1 + 3 / (n - 3), n + 4)
        return BSpline.design_matrix((np.arange(size) + 0.5) / size, knots, 3).toarray()

    return (spline(lattice.shape[0]) @ lattice @ spline(lattice.shape[1]).T).ravel() / 0.48


def augment(images, masks, theta, contrast, brightness):
    "Picture by picture and channel by channel, NumPy arrays (N, 3, S, S) and (N, S, S)."
    size, out, moved = images.shape[-1], np.empty_like(images), np.empty_like(masks)
    ticks = (2 * np.arange(size) + 1) / size - 1
    grid = np.stack([*np.meshgrid(ticks, ticks), np.ones((size, size))])
    for k in range(len(images)):
        x, y = np.tensordot(theta[k], grid, 1)
        at = [((y + 1) * size - 1) / 2, ((x + 1) * size - 1) / 2]
        for c in range(3):
            there = ndimage.map_coordinates(images[k, c], at, order=1, mode="reflect")
            lit = (there - 0.5) * contrast[k] + 0.5 + brightness[k]
            out[k, c] = np.clip(lit, 0, 1)
        moved[k] = ndimage.map_coordinates(masks[k], at, order=0, mode="reflect")
    return out, moved


def hd95(predicted, reference):
    "95th percentile of the distances between two outlines, from every point to every other."

    def outline(region):
        return np.argwhere(region & ~ndimage.binary_erosion(region))

    a, b = outline(predicted), outline(reference)
    there = np.array([np.sqrt(((b - p) ** 2).sum(1)).min() for p in a])
    back = np.array([np.sqrt(((a - p) ** 2).sum(1)).min() for p in b])
    return max(np.percentile(there, 95), np.percentile(back, 95))


def bootstrap(values, n=10_000, seed=0):
    "Percentile interval of the mean, one draw after the other."
    rng = np.random.default_rng(seed)
    means = [rng.choice(values, len(values)).mean() for _ in range(n)]
    return tuple(np.percentile(means, [2.5, 97.5]))
