"""The same steps, written straight from the equations and from the schedule of the released code (paper.md): nothing is kept for later, nothing is done for several pictures at once."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.interpolate import BSpline

from mfmda import phantom
from mfmda.adaptor import distribution_consistency_loss
from mfmda.ddpm import ddim_step, ddim_times, ddpm_loss, decode, encode, estimate_x0, flip, q_sample, to_image, to_model
from mfmda.training import draw
from mfmda.translate import low_pass

noise = torch.randn_like


def style_loss(style, generated, targets):
    "Every generated picture beside every target, each through the network again."
    def gram(x):
        c, h, w = x.shape[1:]
        return x.flatten(2) @ x.flatten(2).mT / (c * h * w)
    loss = 0
    for x in generated:
        for y in targets:
            loss = loss + sum((gram(a) - gram(b)).square().mean() for a, b in zip(style(x[None]), style(y[None])))
    return loss / (len(generated) * len(targets))


def fused(model, x_t, t, condition):
    "Phasic content fusion: the condition goes through the encoder whether it can be heard or not."
    m = (1 / (1 + torch.exp(300 - t.float()))).view(-1, 1, 1, 1)
    h, skips, emb = encode(model.unet, x_t, t)
    E, _, _ = encode(model.unet, q_sample(condition, t, noise(condition)), t)
    heard = m * E + (1 - m) * noise(E)
    return decode(model.unet, h + model.fusion(torch.cat([h, heard], 1)), skips, emb)


def stage1_loss(model, adaptor, source, targets, means, encoder, style, batch, seed, i):
    "Eq. 8 for micro-step i: the target's pictures and their VGG features are seen anew by every generated picture."
    x_T = to_model(flip(targets[draw(len(targets), batch, seed + 1, i)].float() / 255))
    t = torch.randint(300, 800, (batch,)) if i % 2 == 0 else torch.randint(0, 300, (batch,))
    eps = noise(x_T)
    diffusion = ddpm_loss(fused(model, q_sample(x_T, t, eps), t, x_T), eps)
    if i % 2: return diffusion.mean() / 5
    image = source[draw(len(source), batch, seed, i // 2)].float() / 255
    x_S, s_mean, t_mean = to_model(image), *means
    x_t = q_sample(x_S, t, noise(x_S))
    generated = to_image(estimate_x0(x_t, t, fused(model, x_t, t, x_S), clip=False))
    with torch.no_grad(): f_source = encoder(image)
    gate = adaptor.gating(f_source)
    delta = gate * adaptor.delta_net(f_source - t_mean) + (1 - gate) * (t_mean - s_mean)
    losses = distribution_consistency_loss(encoder(generated), f_source, delta) + style_loss(style, generated, targets.float() / 255)
    alpha = 20 ** (t.float() / 1000)
    return alpha.mean() * losses + ((20 ** .9 - alpha) * diffusion).mean()


@torch.no_grad()
def translate(model, images, start, steps, eta, guidance, until):
    "One picture after the other; the state and the path of the structure guidance each have the network to themselves."
    out = []
    for image in images:
        x0 = to_model(image[None])
        times = ddim_times(start, steps)
        x = q_sample(x0, torch.full((1,), times[0][0]), noise(x0))
        for t, s in times:
            at = torch.full((1,), t)
            y = q_sample(x0, at, noise(x0))
            x = ddim_step(x, fused(model, x, at, x0), t, s, eta, noise(x))
            if s >= until:
                y = ddim_step(y, fused(model, y, at, x0), t, s, eta, noise(y))
                x = x - low_pass(x, guidance) + low_pass(y, guidance)
        out.append(to_image(x))
    return torch.cat(out)


def stage2_losses(network, x_source, x_translated, mask):
    "The released schedule's three turns, each with passes of its own: four forward, and three backward when each is followed back."
    bce = lambda logits: sum(F.binary_cross_entropy_with_logits(logits[:, c], (mask > c).float()) for c in (0, 1))
    def align():
        a, b = network.foundation.features(x_source), network.foundation.features(x_translated)
        return sum(1 - F.cosine_similarity(p, q, dim=1).mean() for p, q in zip(a, b)) / len(a)
    yield align
    yield lambda: bce(network(x_source))
    yield lambda: bce(network(x_translated))


def absorbance(vessels, size):
    "Vessels: every point of every vessel is asked of every pixel."
    gx, gy = np.meshgrid(*[np.arange(size) + .5] * 2)
    out = np.zeros((size, size))
    for x, y, r, ink in zip(*phantom._refine(vessels, size)):
        out += np.clip(r + .5 - np.hypot(gx - x, gy - y), 0, min(1, 2 * r)) * ink
    return out.ravel()


def smooth_noise(lattice, size):
    "Smooth noise: the splines are made anew for every field."
    def spline(n):
        return BSpline.design_matrix((np.arange(size) + .5) / size, np.linspace(-3 / (n - 3), 1 + 3 / (n - 3), n + 4), 3).toarray()
    return (spline(lattice.shape[0]) @ lattice @ spline(lattice.shape[1]).T).ravel() / .48


def augment(images, masks, theta, contrast, brightness):
    "Picture by picture and channel by channel, NumPy arrays (N, 3, S, S) and (N, S, S)."
    size, out, moved = images.shape[-1], np.empty_like(images), np.empty_like(masks)
    ticks = (2 * np.arange(size) + 1) / size - 1
    grid = np.stack([*np.meshgrid(ticks, ticks), np.ones((size, size))])
    for k in range(len(images)):
        x, y = np.tensordot(theta[k], grid, 1)
        at = [((y + 1) * size - 1) / 2, ((x + 1) * size - 1) / 2]
        for c in range(3):
            out[k, c] = np.clip((ndimage.map_coordinates(images[k, c], at, order=1, mode="reflect") - .5) * contrast[k] + .5 + brightness[k], 0, 1)
        moved[k] = ndimage.map_coordinates(masks[k], at, order=0, mode="reflect")
    return out, moved


def hd95(predicted, reference):
    "95th percentile of the distances between two outlines, from every point of one to every point of the other."
    def outline(region): return np.argwhere(region & ~ndimage.binary_erosion(region))
    a, b = outline(predicted), outline(reference)
    there = np.array([np.sqrt(((b - p) ** 2).sum(1)).min() for p in a])
    back = np.array([np.sqrt(((a - p) ** 2).sum(1)).min() for p in b])
    return max(np.percentile(there, 95), np.percentile(back, 95))


def bootstrap(values, n=10_000, seed=0):
    "Percentile interval of the mean, one draw after the other."
    rng = np.random.default_rng(seed)
    means = [rng.choice(values, len(values)).mean() for _ in range(n)]
    return tuple(np.percentile(means, [2.5, 97.5]))
