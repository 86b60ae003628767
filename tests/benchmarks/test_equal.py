"""Before a benchmark may be believed: this project's step and the plain formulation give the same
losses and gradients, at small sizes."""

import importlib.util

import cases
import compare
import pytest
import torch


@pytest.mark.parametrize("name", cases.CASES)
def test_both_ways_agree(name):
    "A case compares two ways of computing one thing, and not two things."
    if name == "ddpm_step" and not importlib.util.find_spec("denoising_diffusion_pytorch"):
        pytest.skip("`make benchmark` installs denoising-diffusion-pytorch")
    cases.CASES[name].make(small=True).same()


RIGHT = (torch.tensor(1.0), [torch.ones(3)])


def test_what_agrees_is_accepted():
    "The comparison lets the same through."
    cases.agree(RIGHT, RIGHT)


@pytest.mark.parametrize(
    "wrong",
    [
        (torch.tensor(1.1), [torch.ones(3)]),
        (torch.tensor(1.0), [torch.tensor([1.0, 1.0, 1.2])]),
        (torch.tensor(1.0), []),
    ],
    ids=["loss", "gradient", "no gradient"],
)
def test_what_differs_is_noticed(wrong):
    "A wrong loss, a wrong gradient, and one that is not there: none passes for the same."
    with pytest.raises(AssertionError):
        cases.agree(wrong, RIGHT)


def test_an_entry_is_what_the_page_reads():
    "Both ways are timed in turn, and the entry has their ratio and their arithmetic."
    case = cases.CASES["bootstrap"].make(small=True)
    found = compare.time_both(case, 3)
    assert found["ratio"] == found["plain_s"] / found["ours_s"] and found["runs"] == 3
    low, high = found["range_ours_s"]
    assert low <= found["ours_s"] <= high
    assert "floor_s" not in found  # no arithmetic that torch counts


def test_an_entry_replaces_its_predecessor_in_its_place(tmp_path):
    "A file that is made in several sittings keeps the order of the cases."
    out = tmp_path / "benchmark.json"
    for name, ratio in (("hd95", 1), ("style_loss", 2), ("hd95", 3)):
        compare.keep(out, dict(name=name, device="cpu", ratio=ratio))
    kept = compare.read_json(out)
    assert [(entry["name"], entry["ratio"]) for entry in kept] == [
        ("style_loss", 2),
        ("hd95", 3),
    ]
