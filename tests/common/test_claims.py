"""`also:` in a model's default YAML: further (arch, model_type) names for a class, without an edit of another's file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lavis.common.claims import claims
from lavis.common.config import ConfigError, UnknownNameError, merge_model_config, model_defaults
from lavis.common.registry import registry
from lavis.models import load_model, model_zoo

YAML = """
model: {arch: %s, model_type: null, width: 3}
types: {claimed: {width: 4}}
also: %s
weights: {claimed: {}}
"""


@pytest.fixture
def forget() -> Iterator[None]:
    """Names that a test registers are gone behind it."""
    registry.list_models()
    yield
    for name in ("toy_one", "toy_two"):
        registry._classes["model"].pop(name, None)


def toy(folder: Path, arch: str, also: str) -> Path:
    """Register a model class whose default YAML claims names."""
    file = folder / f"{arch}.yaml"
    file.write_text(YAML % (arch, also))
    registry.register_model(arch)(type(arch, (), {"PRETRAINED_MODEL_CONFIG_DICT": {"claimed": str(file)}}))
    return file


@pytest.mark.parametrize("name", ["blip2_t5", "toy_alias"])
def test_a_claim_puts_the_claiming_arch_in_place(forget: None, tmp_path: Path, name: str) -> None:
    """Of an arch that is registered, and of one that exists by the claim alone."""
    file = toy(tmp_path, "toy_one", f"{{{name}: [claimed]}}")
    assert [str(claim.file) for claim in claims()[name, "claimed"]] == [str(file)]
    cfg = merge_model_config({"arch": name, "model_type": "claimed"})
    assert (cfg.arch, cfg.model_type, cfg.width) == ("toy_one", "claimed", 4)
    assert merge_model_config(cfg) == cfg
    assert model_defaults(name, model_type="claimed") == model_defaults("toy_one", model_type="claimed")
    assert "claimed" in dict(model_zoo)[name] and name in model_zoo
    with pytest.raises(ConfigError, match="(?s)Unknown key 'model.no_such'"):
        load_model(name, "claimed", overrides={"no_such": 1})


def test_other_types_stay_with_their_arch(forget: None, tmp_path: Path) -> None:
    toy(tmp_path, "toy_one", "{blip2_t5: [claimed], toy_alias: [claimed]}")
    assert merge_model_config({"arch": "blip2_t5", "model_type": "pretrain_flant5xl"}).arch == "blip2_t5"
    assert merge_model_config({"arch": "blip2_t5"}).arch == "blip2_t5"
    assert merge_model_config({"arch": "toy_alias"}).arch == "toy_one"
    with pytest.raises(ConfigError, match="Unknown model.model_type of toy_alias 'other'.*Accepted: claimed"):
        merge_model_config({"arch": "toy_alias", "model_type": "other"})
    with pytest.raises(UnknownNameError, match="Unknown model 'toy_nothing'"):
        merge_model_config({"arch": "toy_nothing", "model_type": "claimed"})


def test_two_claims_to_one_pair_name_both_files(forget: None, tmp_path: Path) -> None:
    files = [toy(tmp_path, arch, "{toy_alias: [claimed]}") for arch in ("toy_one", "toy_two")]
    with pytest.raises(ConfigError) as told:
        merge_model_config({"arch": "toy_alias", "model_type": "claimed"})
    assert all(str(file) in str(told.value) for file in files)


def test_a_claim_to_a_pair_that_its_arch_has_names_both_files(forget: None, tmp_path: Path) -> None:
    first = toy(tmp_path, "toy_one", "null")
    second = toy(tmp_path, "toy_two", "{toy_one: [claimed]}")
    with pytest.raises(ConfigError) as told:
        model_defaults("toy_one", model_type="claimed")
    assert str(first) in str(told.value) and str(second) in str(told.value)


@pytest.mark.parametrize(
    ("also", "message"),
    [("[blip2_t5]", "must be a mapping of lists"), ("{blip2_t5: [x]}", "names 'x', which toy_one lacks; it has claimed")],
)
def test_bad_claims_are_refused(forget: None, tmp_path: Path, also: str, message: str) -> None:
    toy(tmp_path, "toy_one", also)
    with pytest.raises(ConfigError, match=message):
        claims()
