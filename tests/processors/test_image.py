from __future__ import annotations

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

from lavis.common.errors import ConfigError
from lavis.processors import load_processor
from tests.parity import count_records, parity_dir

RANDOM = ("blip_image_train", "blip2_image_train", "clip_image_train")
FIXED = ("blip_image_eval", "general_box_caption_img_trainval", "clip_image_eval")


def picture(width: int = 60, height: int = 50) -> Image.Image:
    pixels = np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


def test_recorded_square_resize() -> None:
    records = load_file(parity_dir() / "regionblip" / "data_items.safetensors")
    image = Image.fromarray(records["region/in_uint8"].numpy())
    for name, key in (
        ("blip_image_eval", "imageeval/out"),
        ("general_box_caption_img_trainval", "region0/image"),
    ):
        out = load_processor(name, {"image_size": 56})(image)
        assert torch.allclose(out, records[key], atol=1e-6, rtol=0)
    count_records(2)


@pytest.mark.parametrize("name", RANDOM + FIXED)
def test_shape_and_type(name: str) -> None:
    processor = load_processor(name, {"image_size": 20})
    for mode in ("RGB", "L", "RGBA", "P"):
        out = processor(picture().convert(mode))
        assert out.shape == (3, 20, 20) and out.dtype == torch.float32 and out.is_contiguous()


@pytest.mark.parametrize("name", RANDOM)
def test_draws_come_from_the_given_generator(name: str) -> None:
    processor = load_processor(name, {"image_size": 20})
    assert not processor.deterministic and not processor.keeps_frame
    torch.manual_seed(1)
    first = processor(picture(), rng=np.random.RandomState(3))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again = processor(picture(), rng=np.random.RandomState(3))
    other = processor(picture(), rng=np.random.RandomState(4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was not left as it was"


@pytest.mark.parametrize("name", FIXED)
def test_fixed_processors_draw_nothing(name: str) -> None:
    rng = np.random.RandomState(0)
    processor = load_processor(name, {"image_size": 20})
    assert processor.deterministic
    assert torch.equal(processor(picture(), rng=rng), processor(picture(), rng=rng))
    assert rng.randint(1000) == np.random.RandomState(0).randint(1000)


def test_which_keep_the_frame() -> None:
    assert load_processor("general_box_caption_img_trainval").keeps_frame
    assert load_processor("blip_image_eval").keeps_frame
    assert not load_processor("clip_image_eval").keeps_frame
    assert load_processor("blip2_image_train", {"crop": False, "flip": False}).keeps_frame
    assert not load_processor("blip2_image_train", {"crop": False}).keeps_frame


def test_without_crop_and_flip_it_is_the_square_resize() -> None:
    plain = load_processor("blip2_image_train", {"image_size": 20, "crop": False, "flip": False})
    assert torch.equal(plain(picture()), load_processor("blip_image_eval", {"image_size": 20})(picture()))


def test_published_sizes() -> None:
    sizes = {name: load_processor(name)(picture()).shape[-1] for name in RANDOM + FIXED}
    assert sizes == {
        "blip_image_train": 384,
        "blip2_image_train": 364,
        "clip_image_train": 224,
        "blip_image_eval": 384,
        "general_box_caption_img_trainval": 224,
        "clip_image_eval": 224,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"image_size": "big"}, "image_size is 'big'"),
        ({"mean": [0.5]}, "mean is"),
        ({"min_scale": 0}, "min_scale, max_scale are 0"),
        ({"colour": 1}, "accepted: name, image_size"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_processor("blip2_image_train", OmegaConf.create(options))
