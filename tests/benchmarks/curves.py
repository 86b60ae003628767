"""How cost grows with batch and image, and what is not arithmetic: start-up, waiting for data, a second process. `python tests/benchmarks/curves.py [PART ...]` writes figures/benchmark_curves.json, part by part."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mfmda.config import git_commit, read_json, versions, write_json
from mfmda.scale import measure

root = Path(__file__).resolve().parents[2]
BATCHES, SIZES = (2, 4, 8, 16, 32), (32, 48, 64, 96, 128)
STAGES = dict(source_ddpm="ddpm", adaptation="adapt", segmentation="segment")   # stage -> whose batch it takes


def cost(steps=4, **over):
    "Seconds and peak memory of a step of each stage, for the profile `mini` with other numbers; `stage` alone where it is named."
    stages = [over.pop("stage")] if "stage" in over else list(STAGES)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "curve.json"; file.write_text(json.dumps(dict(base="mini", device="cpu") | over))
        return [{k: s[k] for k in ("stage", "seconds", "memory_mb")} for s in measure(str(file), stages, steps)["stages"]]


def batch(): return [found | dict(batch=n) for n in BATCHES for stage, part in STAGES.items() for found in cost(stage=stage, **{part: dict(batch=n)})]


def size(): return [found | dict(size=px) for px in SIZES for found in cost(size=px, foundation=dict(image_size=2 * px))]   # as in mini, the foundation sees twice the pixels


def startup():
    "Seconds until Python, the package, its command line and its heaviest module are there."
    def seconds(*words):
        start = time.perf_counter(); subprocess.run([sys.executable, "-c", *words], check=True, capture_output=True); return time.perf_counter() - start
    codes = {"python": ["pass"], "import mfmda": ["import mfmda"], "mfmda --help": ["from mfmda.command import main; main()", "--help"], "import mfmda.segment": ["import mfmda.segment"]}
    taken = {name: [] for name in codes}
    for _ in range(7):
        for name, words in codes.items(): taken[name].append(seconds(*words))
    return {name: statistics.median(t) for name, t in taken.items()}


def waiting():
    "Share of a training step that goes into drawing, augmenting and moving its pictures."
    import dataclasses
    from unittest import mock
    import torch
    from mfmda import ddpm, segment
    from mfmda.config import load_profile
    from mfmda.data import load_phantoms
    from mfmda.pipeline import new_mfm, segment_settings
    p, spent = load_profile("mini"), [0.]

    def timed(work):
        def run(*args, **kwargs):
            start = time.perf_counter()
            try: return work(*args, **kwargs)
            finally: spent[0] += time.perf_counter() - start
        return run

    def share(train, module, names):
        spent[0] = 0.
        with mock.patch.multiple(module, **{n: timed(getattr(module, n)) for n in names}):
            start = time.perf_counter(); train(); whole = time.perf_counter() - start
        return spent[0] / whole
    torch.set_num_threads(1); eyes = load_phantoms("phantom_a", 0, 0, 64, p.size)
    s = dataclasses.replace(segment_settings(p), steps=8, statistics="running")
    return dict(ddpm=share(lambda: ddpm.train_ddpm(eyes.images, p.ddpm | dict(steps=12)), ddpm, ("draw", "flip", "to_model")),
                segment=share(lambda: segment.train_segmenter(eyes, eyes.images.flip(1), new_mfm(p, "efficientnet_lite0", None, 0), s, device="cpu"), segment, ("draw", "augment")))


def processes():
    "A batch of the DDPM by one process and by two, each with one thread: steps a second, and how much of the second process is gained."
    def steps_a_second(n):
        command = [sys.executable, *(["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)] if n > 1 else []), __file__, "--child"]
        out = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | dict(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")).stdout
        return float(next(line for line in out.splitlines() if line.startswith("steps a second:")).split(":")[1])
    one, two = (statistics.median(rates) for rates in zip(*[[steps_a_second(n) for n in (1, 2)] for _ in range(3)]))
    return dict(one=one, two=two, efficiency=two / one / 2, cores=os.cpu_count())


def child(steps=10):
    import torch
    from mfmda.config import is_first, load_profile
    from mfmda.data import load_phantoms
    from mfmda.ddpm import train_ddpm
    torch.set_num_threads(1); p = load_profile("mini"); images = load_phantoms("phantom_a", 0, 0, 32, p.size).images
    train = lambda n: train_ddpm(images, p.ddpm | dict(steps=n, batch=16), device="cpu")
    train(2); start = time.perf_counter(); train(2); once = time.perf_counter(); train(2 + steps); end = time.perf_counter()
    if is_first(): print(f"\nsteps a second: {steps / (end - once - (once - start))}")


PARTS = dict(startup=startup, waiting=waiting, processes=processes, batch=batch, size=size)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS)); parser.add_argument("--out", type=Path, default=root / "figures" / "benchmark_curves.json"); parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child: child(); sys.exit()
    if unknown := set(args.parts) - set(PARTS): parser.error(f"unknown part {', '.join(sorted(unknown))}; expected some of {', '.join(PARTS)}")
    for name in args.parts or PARTS:
        load, found = os.getloadavg()[0], PARTS[name]()
        write_json(args.out, (read_json(args.out) if args.out.exists() else {}) | {name: dict(found=found, load_before=round(load, 2), cores=os.cpu_count(), versions=versions(), commit=git_commit())})
        print(name, json.dumps(found), flush=True)
