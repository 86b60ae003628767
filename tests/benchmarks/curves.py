"""How cost grows with batch and image, and what is not arithmetic: start-up, waiting for data, a
second process.

`python tests/benchmarks/curves.py [PART ...]` writes figures/benchmark_curves.json, part by part.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from mfmda.core.files import is_main_process, read_json, write_json
from mfmda.core.runtime import git_commit, package_versions
from mfmda.study.profiles import load_profile

root = Path(__file__).resolve().parents[2]
BATCHES, SIZES = (2, 4, 8, 16, 32), (32, 48, 64, 96, 128)
# stage -> the group of settings that has its batch
STAGES = dict(source_ddpm="ddpm", adaptation="adapt", segmentation="segment")


def seconds_of(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


# ---- how cost grows ----


def cost(stages, **changes):
    "Seconds and peak memory of a step of each stage, for the profile `mini` with changes."
    from mfmda.study.costs import measure

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "curve.json"
        file.write_text(json.dumps(dict(base="mini", device="cpu") | changes))
        measured = measure(str(file), stages, steps=4)["stages"]
    return [
        {key: found[key] for key in ("stage", "seconds", "memory_mb")} for found in measured
    ]


def against_batch():
    "Costs of a step of each stage, for each batch."
    found = []
    for n in BATCHES:
        for stage, group in STAGES.items():
            (line,) = cost([stage], **{group: dict(batch=n)})
            found.append(line | dict(batch=n))
    return found


def against_size():
    "Costs of a step of each stage, for each size; as in `mini`, the foundation sees twice that."
    found = []
    for pixels in SIZES:
        for line in cost(STAGES, size=pixels, foundation=dict(image_size=2 * pixels)):
            found.append(line | dict(size=pixels))
    return found


# ---- what is not arithmetic ----

HELP = "import sys; from mfmda.use.cli import main; sys.exit(main(['--help']))"
STARTS = {
    "python": "pass",
    "import mfmda": "import mfmda",
    "mfmda --help": HELP,
    "import mfmda.use.camera": "import mfmda.use.camera",
}


def startup(runs=7):
    "Seconds until Python, the package, its command line and its heaviest module are there."

    def start(code):
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    taken = {name: [] for name in STARTS}
    for _ in range(runs):
        for name, code in STARTS.items():
            taken[name].append(seconds_of(lambda code=code: start(code)))
    return {name: statistics.median(times) for name, times in taken.items()}


@contextlib.contextmanager
def clocked(module, *names):
    "Sum up the seconds that functions of a module take: a list of one number."
    spent = [0.0]

    def timed(function):
        def run(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[0] += time.perf_counter() - start

        return run

    watched = {name: timed(getattr(module, name)) for name in names}
    with mock.patch.multiple(module, **watched):
        yield spent


def waiting():
    "Share of a training step that goes into drawing and augmenting its pictures."
    import torch

    from mfmda.core.training import RunOptions
    from mfmda.data.sets import load_phantoms
    from mfmda.stage1 import ddpm
    from mfmda.stage2 import tuning
    from mfmda.study.pipeline import new_mfm

    torch.set_num_threads(1)
    p, run = load_profile("mini"), RunOptions(device="cpu")
    eyes = load_phantoms("phantom_a", 0, 0, 64, p.size)
    pairs = tuning.Pairs(eyes, eyes.images.flip(1))
    network = new_mfm(p, "efficientnet_lite0", None, 0)
    settings = p.segment.replace(steps=8, statistics="running")
    with clocked(ddpm, "batch_indices", "flip", "to_model") as drawing:
        of_ddpm = seconds_of(
            lambda: ddpm.train_ddpm(eyes.images, p.ddpm.replace(steps=12), run)
        )
    with clocked(tuning, "draw_batch") as augmenting:
        of_segment = seconds_of(lambda: tuning.train_segmenter(pairs, network, settings, run))
    return dict(ddpm=drawing[0] / of_ddpm, segment=augmenting[0] / of_segment)


# ---- a second process ----

RATE = "steps a second:"


def steps_a_second(processes):
    "What `train_briefly` prints, run by so many processes with one thread each."
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launch if processes > 1 else []), __file__, "--child"]
    env = os.environ | dict(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(RATE)]
    return float(line.removeprefix(RATE))


def second_process(runs=3):
    "A batch of the DDPM by one process and by two: how much of the second one is gained."
    rates = [(steps_a_second(1), steps_a_second(2)) for _ in range(runs)]
    one, two = (statistics.median(each) for each in zip(*rates))
    return dict(one=one, two=two, efficiency=two / one / 2, cores=os.cpu_count())


def train_briefly(steps=10):
    "Print how many steps a second the DDPM of `mini` takes, start-up left out."
    import torch

    from mfmda.core.training import RunOptions
    from mfmda.data.sets import load_phantoms
    from mfmda.stage1.ddpm import train_ddpm

    torch.set_num_threads(1)
    p, run = load_profile("mini"), RunOptions(device="cpu")
    images = load_phantoms("phantom_a", 0, 0, 32, p.size).images

    def train(n):
        return seconds_of(lambda: train_ddpm(images, p.ddpm.replace(steps=n, batch=16), run))

    train(2)
    once = train(2)
    rate = steps / (train(2 + steps) - once)
    if is_main_process():
        print(f"\n{RATE} {rate}")


PARTS = dict(
    startup=startup,
    waiting=waiting,
    processes=second_process,
    batch=against_batch,
    size=against_size,
)


def measure_part(name, out):
    "Measure one part, put it into the file, and print it."
    load, found = os.getloadavg()[0], PARTS[name]()
    part = dict(found=found, load_before=round(load, 2), cores=os.cpu_count())
    part |= dict(versions=package_versions(), commit=git_commit())
    earlier = read_json(out) if out.exists() else {}
    write_json(out, earlier | {name: part})
    print(name, json.dumps(found), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    default = root / "figures" / "benchmark_curves.json"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        train_briefly()
        return
    if unknown := set(args.parts) - set(PARTS):
        known = ", ".join(PARTS)
        parser.error(f"unknown part {', '.join(sorted(unknown))}; expected some of {known}")
    for name in args.parts or PARTS:
        measure_part(name, args.out)


if __name__ == "__main__":
    main()
