"""Files that were damaged in any way are refused with the documented errors, or read; nothing else
comes out of a reader."""

import io
import json
import os
import tarfile
import warnings
import zipfile
from collections import Counter
from math import ceil

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mfmda.core.files import InputError, TrainingError

EXAMPLES = int(os.environ.get("MFMDA_FUZZ", 220))  # over all readers; `make test-long`: more


def encoded(array, suffix, **options):
    data = io.BytesIO()
    Image.fromarray(array).save(data, suffix, **options)
    return data.getvalue()


def eye(size=24):
    "A photograph and its labels."
    from mfmda.data.sets import load_phantoms

    one = load_phantoms("phantom_a", 1, 0, 1, size)
    return one.images[0].permute(1, 2, 0).numpy(), one.masks[0].numpy()


def saved(write):
    "What `write(path)` leaves in a file."
    data = io.BytesIO()
    write(data)
    return data.getvalue()


def state():
    "Network and optimiser of a run that is checkpointed."
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    return network, torch.optim.AdamW(network.parameters())


def checkpoint():
    network, optimizer = state()
    states = dict(optimizer=optimizer.state_dict(), modules=dict(network=network.state_dict()))
    run = dict(step=3, key="k", history=[dict(loss=1.0)]) | states
    return saved(lambda f: torch.save(run, f))


def read_checkpoint(path):
    from mfmda.core.training import load_checkpoint

    network, optimizer = state()
    load_checkpoint(path, dict(network=network), optimizer, "k")


def safetensors():
    from safetensors.torch import save

    metadata = dict(architecture=json.dumps(dict(dim=3)))
    return save(state()[0].state_dict(), metadata=metadata)


def archive(kind):
    def write(f):
        if kind == "zip":
            with zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED) as z:
                z.writestr("a/eye.png", bytes(200))
        else:
            with tarfile.open(fileobj=f, mode="w:gz") as t:
                member = tarfile.TarInfo("a/eye.png")
                member.size = 200
                t.addfile(member, io.BytesIO(bytes(200)))

    return saved(write)


def unpack(path):
    from mfmda.data.public import unpack

    unpack(path, path.parent / "unpacked")


def table():
    from mfmda.study.metrics import COLUMNS

    head = ["source", "target", "method", "seed", "image", *COLUMNS]
    rows = [["a", "b", "mfm_da", "0", f"i{k}", *["0.5"] * len(COLUMNS)] for k in range(3)]
    return "\n".join(map(",".join, [head, *rows])).encode()


def read_table(path):
    from mfmda.study.metrics import COLUMNS
    from mfmda.study.results import read_rows

    rows = read_rows(
        path, "5_segment", ["source", "target", "method", "seed", "image", *COLUMNS]
    )
    assert np.isfinite(rows[list(COLUMNS)].to_numpy(float)).all()


def predictions():
    from mfmda.study.profiles import METHODS

    images, masks = eye()
    arrays = dict(images=images.transpose(2, 0, 1)[None], masks=masks[None], ids=["i0"])
    arrays |= {f"p_{m}": np.zeros((1, 2, 24, 24), np.float16) for m in METHODS}
    return saved(lambda f: np.savez_compressed(f, **arrays))


def matlab():
    from scipy.io import savemat

    return saved(lambda f: savemat(f, dict(mask=eye()[1]), do_compression=True))


def vit():
    "A ViT of a few hundred weights, in timm's own names."
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2, num_classes=0
    )


def readers():
    "name -> (ending, bytes of a good file, what reads it)"
    from mfmda.core.files import read_json
    from mfmda.data.public import Photo, read_photo_mask
    from mfmda.data.readers import read_image, read_mask
    from mfmda.stage1.encoders import load_tensors
    from mfmda.stage2.foundation import load_retfound
    from mfmda.study.profiles import load_profile
    from mfmda.study.results import read_predictions

    image, mask = eye()
    refuge = np.array([255, 128, 0], np.uint8)[mask]
    train, test = "phantom:phantom_a?count=8", "phantom:phantom_a?start=9&count=8"
    source = dict(name="a", train=train, test=test)
    values = dict(
        base="smoke", seeds=[0, 1], ddpm=dict(steps=5, channels=[8, 16]), source=source
    )
    profile = json.dumps(values).encode()
    weights = saved(lambda f: torch.save(state()[0].state_dict(), f))
    retfound = saved(lambda f: torch.save(dict(model=vit().state_dict()), f))
    return {
        "png": (".png", encoded(image, "PNG"), read_image),
        "jpeg": (".jpg", encoded(image, "JPEG"), read_image),
        "bmp": (".bmp", encoded(image, "BMP"), read_image),
        "tiff": (".tif", encoded(image, "TIFF", compression="tiff_lzw"), read_image),
        "mask png": (".png", encoded(mask, "PNG"), read_mask),
        "mask bmp": (".bmp", encoded(refuge, "BMP"), read_mask),
        "matlab": (
            ".mat",
            matlab(),
            lambda path: read_photo_mask(Photo("i", path, "", (path,))),
        ),
        "json": (".json", profile, read_json),
        "profile": (".json", profile, load_profile),
        "profile yaml": (".yaml", yaml.safe_dump(values).encode(), load_profile),
        "checkpoint": (".pt", checkpoint(), read_checkpoint),
        "tensors": (".pth", weights, load_tensors),
        "safetensors": (".safetensors", safetensors(), load_tensors),
        "retfound": (".pth", retfound, lambda path: load_retfound(path, vit())),
        "zip": (".zip", archive("zip"), unpack),
        "tar": (".tar.gz", archive("tar"), unpack),
        "table": (".csv", table(), read_table),
        "predictions": (".npz", predictions(), read_predictions),
    }


READERS = readers()
EACH = dict(
    max_examples=ceil(EXAMPLES / len(READERS)), deadline=None, derandomize=True, database=None
)
PLACES = st.floats(0, 1, exclude_max=True)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), PLACES, st.integers(0, 7)),
        st.tuples(st.just("write"), PLACES, st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("insert"), PLACES, st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("drop"), PLACES, st.integers(1, 40)),
        st.tuples(st.just("cut"), PLACES, st.none()),
        st.tuples(st.just("repeat"), PLACES, st.integers(1, 40)),
    ),
    min_size=1,
    max_size=6,
)


def damaged(data, changes):
    "Bytes after changes: a bit flipped, bytes overwritten, inserted, lost or repeated, a cut end."
    data = bytearray(data)
    for kind, place, how in changes:
        at = int(place * len(data))
        if kind == "flip" and data:
            data[at] ^= 1 << how
        elif kind == "write":
            data[at : at + len(how)] = how
        elif kind == "insert":
            data[at:at] = how
        elif kind == "drop":
            del data[at : at + how]
        elif kind == "cut":
            del data[at:]
        elif kind == "repeat":
            data[at:at] = data[at : at + how]
    return bytes(data)


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused(name, tmp_path_factory, record):
    suffix, good, read = READERS[name]
    seen = Counter()

    @settings(**EACH, suppress_health_check=list(HealthCheck))
    @given(CHANGES)
    def attempt(changes):
        path = tmp_path_factory.mktemp("fuzz") / f"file{suffix}"
        path.write_bytes(damaged(good, changes))
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Pillow and NumPy may warn of what they then refuse
            try:
                read(path)
                seen["read"] += 1
            except (InputError, TrainingError) as error:
                assert str(path) in str(error) or path.name in str(error), error
                seen["refused"] += 1

    attempt()
    assert seen["refused"] and seen.total() >= 0.5 * EXAMPLES / len(READERS), seen
    record(test="damaged files", of=name, **seen)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats()
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=5,
)


def at(values, place):
    for name in place:
        values = values[name]
    return values


def holds(now, given):
    "Whether a setting is what was given; a group has what was given beside its other values."
    if isinstance(now, dict) and isinstance(given, dict):
        return all(k in now and holds(now[k], v) for k, v in given.items())
    return now == given


@settings(**EACH)
@given(st.data())
def test_a_profile_of_wrong_values_is_refused(tmp_path_factory, data):
    "Any value in any place of a profile is the setting, or an error that names the setting."
    from mfmda.study.profiles import load_profile

    good = load_profile("smoke").model_dump()
    groups = [(k, j) for k, v in good.items() if isinstance(v, dict) for j in v]
    place = data.draw(st.sampled_from([(k,) for k in good if k != "name"] + groups))
    over = data.draw(VALUES)
    for name in reversed(place):
        over = {name: over}
    path = tmp_path_factory.mktemp("fuzz") / "clinic.json"
    path.write_text(json.dumps(dict(base="smoke") | over))
    try:
        profile = load_profile(path)
    except InputError as error:
        assert place[0] in str(error) or "not readable as YAML" in str(error), error
    else:
        given_value = at(yaml.safe_load(path.read_text()), place)
        assert holds(at(profile.model_dump(), place), given_value), (place, given_value)


@settings(**EACH)
@given(
    st.one_of(
        st.text(max_size=40),
        st.builds(
            "{}:{}?{}={}".format,
            st.sampled_from(["phantom", "crops", "folder"]),
            st.sampled_from(["phantom_a", "refuge_val", "no/where", "random_3", ""]),
            st.sampled_from(
                ["seed", "start", "count", "camera", "zoom", "largest", "from", "to", "x"]
            ),
            st.text(max_size=6),
        ),
    )
)
def test_a_set_that_does_not_exist_is_refused(spec):
    from mfmda.data.sets import load_set

    try:
        assert len(load_set(spec, 16))
    except InputError:
        pass
