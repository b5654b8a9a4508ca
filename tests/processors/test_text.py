from __future__ import annotations

import json

import pytest

from lavis.common.errors import ConfigError, UnknownNameError
from lavis.processors import BaseProcessor, load_processor
from tests.parity import count_records, parity_dir


@pytest.mark.parametrize("name", ["blip_caption", "blip_question"])
def test_recorded_texts(name: str) -> None:
    records = json.loads((parity_dir() / "regionblip" / "data_items.json").read_text())[name]
    processor = load_processor(name)
    for raw, expected in records:
        assert processor(raw) == expected
    count_records(len(records))


def test_caption_rules() -> None:
    processor = load_processor("blip_caption")
    assert processor('A "Red"  one!\n') == "a red one"
    assert processor("?") == "?"
    assert processor(".!") == ""
    assert load_processor("blip_caption", {"max_words": 2})("one two three") == "one two"
    assert load_processor("blip_caption", {"prompt": "a photo of "})("A dog.") == "a photo of a dog"


def test_options() -> None:
    with pytest.raises(ConfigError, match=r"no option max_word; accepted: name, prompt, max_words"):
        load_processor("blip_caption", {"name": "blip_caption", "max_word": 3})
    with pytest.raises(ConfigError, match="max_words is 0"):
        load_processor("blip_question", {"max_words": 0})
    assert load_processor("blip_caption", {"max_words": None})("A b") == "a b"
    assert load_processor("blip_question").build(max_words=1)("One two") == "one"


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(UnknownNameError, match="blip_caption"):
        load_processor("blip_capton")


def test_identity() -> None:
    item = object()
    assert load_processor("identity")(item) is item
    assert isinstance(BaseProcessor.from_config(), BaseProcessor)
    with pytest.raises(ConfigError, match="accepted: name"):
        load_processor("identity", {"image_size": 3})
