"""One ONNX file says what the segmenter says, for any number of images, without torch."""
import json

import numpy as np
import onnxruntime
import pytest
import torch

from mfmda.command import main
from mfmda.foundation import MaeSettings, MaskedAutoencoder, build_foundation
from mfmda.segment import SegmentationModel, Segmenter


def moved(network):
    "LoRA's B starts at zero: move it, so that merging it matters."
    torch.manual_seed(1)
    for name, p in network.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(p, std=.05)
    return network


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_onnx_agrees_with_torch(kind, tmp_path):
    torch.manual_seed(0)
    if kind == "cnn": foundation = build_foundation("efficientnet_lite0", None, "lora", dict(rank=2, alpha=4), 64)
    else: foundation = build_foundation("vit_mae", MaskedAutoencoder(MaeSettings(image_size=32, patch=4, dim=48, depth=4, heads=3)).save(tmp_path / "vit.safetensors"), "lora", dict(rank=2, alpha=4))
    segmenter = Segmenter(moved(SegmentationModel(foundation)), facts=dict(size=48))
    segmenter.save_pretrained(tmp_path / "segmenter"); before = {k: v.clone() for k, v in segmenter.network.state_dict().items()}
    assert main(["export", "--model", str(tmp_path / "segmenter"), "--out", str(tmp_path / "segmenter.onnx")]) == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "segmenter.onnx"))
    for n in (1, 3):
        images = torch.rand(n, 3, 48, 48)
        ours, = session.run(None, dict(images=images.numpy()))
        assert ours.shape == (n, 2, 48, 48) and np.abs(ours - segmenter(images).numpy()).max() < 1e-4
    assert json.loads(session.get_modelmeta().custom_metadata_map["mfmda"])["size"] == 48
    assert all(torch.equal(v, before[k]) for k, v in segmenter.network.state_dict().items())      # the segmenter itself keeps its LoRA apart


def test_what_cannot_be_exported_is_named(tmp_path, capsys):
    assert main(["export", "--model", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x.onnx")]) == 2
    assert "config.json: no such file" in capsys.readouterr().err
