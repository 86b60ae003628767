"""Before a benchmark may be believed: this project's step and the plain formulation give the same losses and gradients, at small sizes."""
import importlib.util

import compare
import pytest


@pytest.mark.parametrize("name", compare.CASES)
def test_both_ways_agree(name):
    if name == "ddpm_step" and not importlib.util.find_spec("denoising_diffusion_pytorch"): pytest.skip("denoising-diffusion-pytorch is not installed; `make benchmark` installs it")
    compare.CASES[name][0](small=True).same()


def test_what_differs_is_noticed():
    import torch
    right = (torch.tensor(1.), [torch.ones(3)])
    compare.agree(right, right)
    for wrong in ((torch.tensor(1.1), [torch.ones(3)]), (torch.tensor(1.), [torch.tensor([1., 1., 1.2])]), (torch.tensor(1.), [])):
        with pytest.raises(AssertionError): compare.agree(wrong, right)
