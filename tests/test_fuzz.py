"""Files that were damaged in any way are refused with the documented errors, or read; nothing else comes out of a reader."""
import io
import json
import os
import tarfile
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mfmda.config import InputError, TrainingError

EXAMPLES = int(os.environ.get("MFMDA_FUZZ", 220))          # over all readers; `make test-long` asks for more


def encoded(array, suffix, **options):
    data = io.BytesIO()
    Image.fromarray(array).save(data, suffix, **options)
    return data.getvalue()


def eye(size=24):
    "A photograph and its labels."
    from mfmda.data import load_phantoms
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
    return saved(lambda f: torch.save(dict(step=3, key="k", history=[dict(loss=1.)], optimizer=optimizer.state_dict(), modules=dict(network=network.state_dict())), f))


def read_checkpoint(path):
    from mfmda.training import load_checkpoint
    network, optimizer = state()
    load_checkpoint(path, dict(network=network), optimizer, "k")


def safetensors():
    from safetensors.torch import save
    return save({k: v for k, v in state()[0].state_dict().items()}, metadata=dict(architecture=json.dumps(dict(dim=3))))


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
    from mfmda.datasets import unpack
    unpack(path, path.parent / "unpacked")


def table():
    from mfmda.metrics import COLUMNS
    head = ["source", "target", "method", "seed", "image", *COLUMNS]
    return "\n".join([",".join(head), *(",".join(["a", "b", "mfm_da", "0", f"i{k}", *["0.5"] * len(COLUMNS)]) for k in range(3))]).encode()


def read_table(path):
    from mfmda.metrics import COLUMNS
    from mfmda.report import read_rows
    rows = read_rows(path, "5_segment", ["source", "target", "method", "seed", "image", *COLUMNS])
    assert np.isfinite(rows[list(COLUMNS)].to_numpy(float)).all()


def predictions():
    from mfmda.report import METHODS
    images, masks = eye()
    return saved(lambda f: np.savez_compressed(f, images=images.transpose(2, 0, 1)[None], masks=masks[None], ids=["i0"], **{f"p_{m}": np.zeros((1, 2, 24, 24), np.float16) for m in METHODS}))


def matlab():
    from scipy.io import savemat
    return saved(lambda f: savemat(f, dict(mask=eye()[1]), do_compression=True))


def vit():
    "A ViT of a few hundred weights, in timm's own names."
    from timm.models.vision_transformer import VisionTransformer
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2, num_classes=0)


def readers():
    "name -> (ending, bytes of a good file, what reads it)"
    from mfmda.config import load_profile, read_json
    from mfmda.data import read_image, read_mask
    from mfmda.datasets import Photo, read_photo_mask
    from mfmda.encoders import load_tensors
    from mfmda.foundation import load_retfound
    from mfmda.report import read_predictions
    image, mask = eye()
    refuge = np.array([255, 128, 0], np.uint8)[mask]
    profile = json.dumps(dict(base="smoke", seeds=[0, 1], ddpm=dict(steps=5, channels=[8, 16]), source=dict(name="a", train="phantom:phantom_a?count=8", test="phantom:phantom_a?start=9&count=8"))).encode()
    return {
        "png": (".png", encoded(image, "PNG"), read_image), "jpeg": (".jpg", encoded(image, "JPEG"), read_image), "bmp": (".bmp", encoded(image, "BMP"), read_image),
        "tiff": (".tif", encoded(image, "TIFF", compression="tiff_lzw"), read_image),
        "mask png": (".png", encoded(mask, "PNG"), read_mask), "mask bmp": (".bmp", encoded(refuge, "BMP"), read_mask),
        "matlab": (".mat", matlab(), lambda path: read_photo_mask(Photo("i", path, "", (path,)))),
        "json": (".json", profile, read_json), "profile": (".json", profile, load_profile),
        "checkpoint": (".pt", checkpoint(), read_checkpoint), "tensors": (".pth", saved(lambda f: torch.save(state()[0].state_dict(), f)), load_tensors),
        "safetensors": (".safetensors", safetensors(), load_tensors), "retfound": (".pth", saved(lambda f: torch.save(dict(model=vit().state_dict()), f)), lambda path: load_retfound(path, vit())),
        "zip": (".zip", archive("zip"), unpack), "tar": (".tar.gz", archive("tar"), unpack),
        "table": (".csv", table(), read_table), "predictions": (".npz", predictions(), read_predictions),
    }


READERS = readers()
PLACES = st.floats(0, 1, exclude_max=True)
CHANGES = st.lists(st.one_of(
    st.tuples(st.just("flip"), PLACES, st.integers(0, 7)), st.tuples(st.just("write"), PLACES, st.binary(min_size=1, max_size=4)), st.tuples(st.just("insert"), PLACES, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("drop"), PLACES, st.integers(1, 40)), st.tuples(st.just("cut"), PLACES, st.none()), st.tuples(st.just("repeat"), PLACES, st.integers(1, 40))), min_size=1, max_size=6)


def damaged(data, changes):
    "Bytes after a list of changes: a flipped bit, bytes that were overwritten, inserted, lost, repeated, or the end cut off."
    data = bytearray(data)
    for kind, place, how in changes:
        at = int(place * len(data))
        if kind == "flip" and data:
            data[at] ^= 1 << how
        elif kind == "write":
            data[at:at + len(how)] = how
        elif kind == "insert":
            data[at:at] = how
        elif kind == "drop":
            del data[at:at + how]
        elif kind == "cut":
            del data[at:]
        elif kind == "repeat":
            data[at:at] = data[at:at + how]
    return bytes(data)


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused(name, tmp_path_factory, record):
    suffix, good, read = READERS[name]
    seen = Counter()

    @settings(max_examples=-(-EXAMPLES // len(READERS)), deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(CHANGES)
    def attempt(changes):
        path = tmp_path_factory.mktemp("fuzz") / f"file{suffix}"
        path.write_bytes(damaged(good, changes))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")          # Pillow and NumPy may warn of what they then refuse
            try:
                read(path)
                seen["read"] += 1
            except (InputError, TrainingError) as error:
                assert str(path) in str(error) or path.name in str(error), error
                seen["refused"] += 1

    attempt()
    assert seen["refused"] and seen.total() >= .5 * EXAMPLES / len(READERS), seen
    record(test="damaged files", of=name, **seen)


VALUES = st.recursive(st.none() | st.booleans() | st.integers(-10**6, 10**6) | st.floats() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=5)


@settings(max_examples=-(-EXAMPLES // len(READERS)), deadline=None, derandomize=True, database=None)
@given(st.data())
def test_a_profile_of_wrong_values_is_refused(tmp_path_factory, data):
    "Any value in any place of a profile is a setting that fits, or an error that names the setting."
    from mfmda.config import OPTIONAL, load_profile
    good = load_profile("smoke").to_dict()
    place = data.draw(st.sampled_from([(k,) for k in good if k not in ("name",)] + [(k, j) for k, v in good.items() if isinstance(v, dict) for j in v]))
    value = data.draw(VALUES)
    over = value
    for key in reversed(place):
        over = {key: over}
    path = tmp_path_factory.mktemp("fuzz") / "clinic.json"
    path.write_text(json.dumps(dict(base="smoke") | over))
    try:
        profile = load_profile(path)
    except InputError as error:
        assert place[0] in str(error), error
    else:
        was, now = good, profile.to_dict()
        for key in place:
            was, now = was[key], now[key]
        allowed = OPTIONAL.get(place[-1]) if len(place) > 1 else None
        assert isinstance(now, (int, float) if isinstance(was, float) else allowed or type(was)) or (allowed and now is None), (place, now)


@settings(max_examples=-(-EXAMPLES // len(READERS)), deadline=None, derandomize=True, database=None)
@given(st.one_of(st.text(max_size=40), st.builds("{}:{}?{}={}".format, st.sampled_from(["phantom", "crops", "folder"]), st.sampled_from(["phantom_a", "refuge_val", "no/where", "random_3", ""]),
                                                  st.sampled_from(["seed", "start", "count", "camera", "zoom", "largest", "from", "to", "x"]), st.text(max_size=6))))
def test_a_set_that_does_not_exist_is_refused(spec):
    from mfmda.data import load_set
    try:
        assert len(load_set(spec, 16))
    except InputError:
        pass
