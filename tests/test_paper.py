"""The profiles of the paper's scale say what paper and released code say, field by field."""

import json
from pathlib import Path

import pytest

from mfmda.study.pipeline import new_mfm
from mfmda.study.profiles import load_profile

FILE = Path(__file__).parent / "reference" / "paper_facts.json"
TOLD = json.loads(FILE.read_text(encoding="utf-8"))


def field_of(values, path):
    for name in path.split("."):
        values = values[name]
    return values


@pytest.mark.parametrize(
    "fact", TOLD["facts"], ids=lambda fact: f"{fact['profile']} {fact['field']}"
)
def test_a_field_is_as_its_source_says(fact):
    values = load_profile(fact["profile"]).model_dump()
    assert field_of(values, fact["field"]) == fact["value"], fact["source"]


def test_the_profiles_differ_in_what_the_table_of_differences_says():
    "Text and released code are told apart by two fields; everything else is shared."
    text, released = (load_profile(name).model_dump() for name in ("paper", "paper_released"))
    for values in (text, released):
        del values["name"], values["note"]
    changed = {
        f"{group}.{name}"
        for group in ("ddpm", "fusion", "adapt", "foundation", "segment")
        for name, value in text[group].items()
        if released[group][name] != value
    }
    assert changed == {"foundation.trainable", "segment.optimisation"}
    both = [d["number"] for d in TOLD["differences"] if d["paper_released"] == "released"]
    assert both == [1, 2]
    assert [d["number"] for d in TOLD["differences"]] == list(range(1, 11))


def test_a_profile_chooses_the_decoder():
    "The paper's: four widths that double, and transposed convolutions."
    profile = load_profile("paper").replace(foundation=dict(image_size=32))
    network = new_mfm(profile, "vit_tiny_patch16_224", "random", 0)
    widths = [lateral.out_channels for lateral in network.decoder.lateral]
    assert widths == [64, 128, 256, 512]
    assert network.decoder.config["up"] == "transposed"
