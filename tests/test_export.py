"""One ONNX file says what the segmenter says, for any number of images, without torch."""

import functools
import json

import numpy as np
import onnxruntime
import pytest
import torch

from mfmda.core.files import WRITTEN
from mfmda.stage2.foundation import build_foundation
from mfmda.stage2.mae import MaskedAutoencoder
from mfmda.stage2.segmenter import SegmentationModel, Segmenter
from mfmda.stage2.settings import LoraSettings, MaeSettings
from mfmda.use.cli import main

LORA = LoraSettings(rank=2, alpha=4)


def cnn(folder):
    return build_foundation("efficientnet_lite0", None, "lora", LORA, image_size=64)


def vit(folder):
    sizes = MaeSettings(image_size=32, patch=4, dim=48, depth=4, heads=3)
    weights = MaskedAutoencoder(sizes).save(folder / "vit.safetensors")
    return build_foundation("vit_mae", weights, "lora", LORA)


def moved(network):
    "LoRA's B starts at zero: move it, so that merging it matters."
    torch.manual_seed(1)
    for name, p in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05)
    return network


@pytest.fixture(params=[cnn, vit], scope="module")
def exported(request, tmp_path_factory):
    "A segmenter, its weights before the export, and a session of its ONNX file."
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    network = moved(SegmentationModel(request.param(folder)))
    segmenter = Segmenter(network, facts=dict(size=48))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    segmenter.save_pretrained(folder / "segmenter")
    file = str(folder / "segmenter.onnx")
    assert main(["export", "--model", str(folder / "segmenter"), "--out", file]) == 0
    return segmenter, before, onnxruntime.InferenceSession(file)


@pytest.mark.parametrize("n", [1, 3])
def test_onnx_agrees_with_torch(exported, n):
    segmenter, _, session = exported
    images = torch.rand(n, 3, 48, 48)
    (ours,) = session.run(None, dict(images=images.numpy()))
    assert ours.shape == (n, 2, 48, 48)
    assert np.abs(ours - segmenter(images).numpy()).max() < 1e-4


def test_the_file_says_what_it_is_of(exported):
    facts = exported[2].get_modelmeta().custom_metadata_map["mfmda"]
    assert json.loads(facts)["size"] == 48


def test_the_segmenter_keeps_its_lora_apart(exported):
    segmenter, before, _ = exported
    after = segmenter.network.state_dict()
    assert all(torch.equal(v, before[k]) for k, v in after.items())


def test_what_cannot_be_exported_is_named(tmp_path, capsys):
    missing, out = str(tmp_path / "nowhere"), str(tmp_path / "x.onnx")
    assert main(["export", "--model", missing, "--out", out]) == 2
    assert "config.json: no such file" in capsys.readouterr().err


def test_weights_in_a_file_of_their_own(exported, tmp_path, monkeypatch):
    "A model of more than 2 GB has two files, which find each other when both are moved together."
    save = torch.onnx.ONNXProgram.save
    apart = functools.partialmethod(save, external_data=True)
    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", apart)
    segmenter = exported[0]
    file, moved_to = segmenter.to_onnx(tmp_path / "made" / "large.onnx"), tmp_path / "moved"
    names = {p.name for p in file.parent.iterdir()}
    assert names == {"large.onnx", "large.onnx.data", WRITTEN}
    file.parent.rename(moved_to)
    session = onnxruntime.InferenceSession(str(moved_to / "large.onnx"))
    images = torch.rand(1, 3, 48, 48)
    (ours,) = session.run(None, dict(images=images.numpy()))
    assert np.abs(ours - segmenter(images).numpy()).max() < 1e-4


def test_no_weights_of_an_earlier_export_are_left(exported, tmp_path, monkeypatch):
    "Two files, then one: the second of the first call is gone, and other files stay."
    segmenter, file = exported[0], tmp_path / "x.onnx"
    (tmp_path / "letter.txt").touch()
    save = torch.onnx.ONNXProgram.save
    with monkeypatch.context() as patched:
        apart = functools.partialmethod(save, external_data=True)
        patched.setattr(torch.onnx.ONNXProgram, "save", apart)
        segmenter.to_onnx(file)
    segmenter.to_onnx(file)
    assert {p.name for p in tmp_path.iterdir()} == {"x.onnx", "letter.txt", WRITTEN}
