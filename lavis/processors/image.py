"""Image processors: a PIL picture in, a normalised float32 tensor [3, S, S] out, S being image_size pixels.

Names, sizes and scales after LAVIS (salesforce/LAVIS, lavis/processors). What differs: every random draw can
be made to depend on a given generator; RandAugment of blip_image_train is torchvision's (2 operations of
magnitude 5 as there, but chosen among torchvision's operations); crop and flip can be switched off.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.functional import InterpolationMode

from lavis.common.errors import ConfigError
from lavis.common.registry import registry
from lavis.common.seeding import torch_rng
from lavis.processors.base_processor import BaseProcessor

# openai/CLIP, clip/clip.py
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Step = Callable[[Image.Image], Image.Image]
Statistics = Sequence[float] | None  # one number each for red, green and blue; None: CLIP's


class ImageProcessor(BaseProcessor):
    """A chain of torchvision transforms on the RGB picture, then tensor and normalisation.

    Subclasses say in `frame` what happens before that, and set `deterministic` and `keeps_frame` to fit.
    """

    deterministic = False
    keeps_frame = False

    def __init__(self, *, image_size: int, mean: Statistics, std: Statistics) -> None:
        if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
            raise ConfigError(f"image_size is {image_size!r}; accepted: a number of pixels of 1 or more")
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != 3:
                raise ConfigError(f"{name} is {list(values)}; accepted: one number each for red, green and blue")
        self.image_size = image_size
        self.normalize = transforms.Normalize(tuple(mean or CLIP_MEAN), tuple(std or CLIP_STD))

    def frame(self, image: Image.Image) -> Image.Image:
        """The picture brought to S x S pixels."""
        raise NotImplementedError

    def fingerprint(self) -> str | None:
        """Who frames pictures, the numbers that it does so with, and what becomes of a picture of noise: that says the rest
        (interpolation, versions of libraries). None where pictures are augmented."""
        if not self.deterministic:
            return None
        noise = np.random.RandomState(0).randint(256, size=(61, 83, 3)).astype(np.uint8)
        result = hashlib.sha256(self(Image.fromarray(noise)).numpy().tobytes()).hexdigest()
        frame = f"{type(self).frame.__module__}.{type(self).frame.__qualname__}"
        numbers = [self.image_size, list(self.normalize.mean), list(self.normalize.std)]
        return f"{frame} {numbers} {result}"

    def __call__(self, item: Image.Image, *, rng: np.random.RandomState | None = None) -> Tensor:
        image = item if item.mode == "RGB" else item.convert("RGB")
        if self.deterministic or rng is None:
            image = self.frame(image)
        else:
            with torch_rng(int(rng.randint(2**31 - 1))):
                image = self.frame(image)
        pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()
        tensor: Tensor = self.normalize(pixels.to(torch.float32).div(255))
        return tensor


def check_scale(min_scale: float, max_scale: float) -> tuple[float, float]:
    """The least and most share of the area that a crop keeps; ConfigError unless 0 < least <= most."""
    if not 0 < min_scale <= max_scale:
        raise ConfigError(f"min_scale, max_scale are {min_scale}, {max_scale}; accepted: 0 < min_scale <= max_scale")
    return (float(min_scale), float(max_scale))


def random_crop(image_size: int, scale: tuple[float, float]) -> Step:
    """A crop of random place, shape and area (a share within `scale`), resized to S x S."""
    return transforms.RandomResizedCrop(image_size, scale=scale, interpolation=InterpolationMode.BICUBIC)


@registry.register_processor("blip_image_eval")
class SquareResizeProcessor(ImageProcessor):
    """Bicubic resize to a square, whatever the picture's shape. No randomness, nothing cut."""

    deterministic = True
    keeps_frame = True

    def __init__(self, *, image_size: int = 384, mean: Statistics = None, std: Statistics = None) -> None:
        super().__init__(image_size=image_size, mean=mean, std=std)

    def frame(self, image: Image.Image) -> Image.Image:
        return image.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)


@registry.register_processor("general_box_caption_img_trainval")
class RegionImageProcessor(SquareResizeProcessor):
    """The square resize, for pictures with boxes, in training and evaluation."""

    def __init__(self, *, image_size: int = 224, mean: Statistics = None, std: Statistics = None) -> None:
        super().__init__(image_size=image_size, mean=mean, std=std)


@registry.register_processor("blip2_image_train")
class Blip2TrainProcessor(ImageProcessor):
    """A random crop of at least half the picture, and a mirror image every second time.

    `flip: false` for captions that say left and right; `crop: false` makes it a plain square resize.
    """

    def __init__(
        self,
        *,
        image_size: int = 364,
        mean: Statistics = None,
        std: Statistics = None,
        min_scale: float = 0.5,
        max_scale: float = 1.0,
        crop: bool = True,
        flip: bool = True,
    ) -> None:
        super().__init__(image_size=image_size, mean=mean, std=std)
        scale = check_scale(min_scale, max_scale)
        square = transforms.Resize((image_size, image_size), InterpolationMode.BICUBIC)
        self.steps: list[Step] = [random_crop(image_size, scale) if crop else square]
        if flip:
            self.steps.append(transforms.RandomHorizontalFlip())
        self.deterministic = self.keeps_frame = not crop and not flip

    def frame(self, image: Image.Image) -> Image.Image:
        for step in self.steps:
            image = step(image)
        return image


@registry.register_processor("blip_image_train")
class BlipTrainProcessor(Blip2TrainProcessor):
    """Random crop, mirror image every second time, and RandAugment with 2 operations of magnitude 5."""

    def __init__(
        self,
        *,
        image_size: int = 384,
        mean: Statistics = None,
        std: Statistics = None,
        min_scale: float = 0.5,
        max_scale: float = 1.0,
        flip: bool = True,
    ) -> None:
        super().__init__(image_size=image_size, mean=mean, std=std, min_scale=min_scale, max_scale=max_scale, flip=flip)
        self.steps.append(transforms.RandAugment(num_ops=2, magnitude=5))


@registry.register_processor("clip_image_train")
class ClipTrainProcessor(ImageProcessor):
    """CLIP's training crop: at least 0.9 of the picture's area."""

    def __init__(
        self,
        *,
        image_size: int = 224,
        mean: Statistics = None,
        std: Statistics = None,
        min_scale: float = 0.9,
        max_scale: float = 1.0,
    ) -> None:
        super().__init__(image_size=image_size, mean=mean, std=std)
        self.crop = random_crop(image_size, check_scale(min_scale, max_scale))

    def frame(self, image: Image.Image) -> Image.Image:
        return self.crop(image)


@registry.register_processor("clip_image_eval")
class ClipEvalProcessor(ImageProcessor):
    """CLIP's evaluation view: the shorter side to S, then the middle S x S."""

    deterministic = True

    def __init__(self, *, image_size: int = 224, mean: Statistics = None, std: Statistics = None) -> None:
        super().__init__(image_size=image_size, mean=mean, std=std)
        self.resize = transforms.Resize(image_size, InterpolationMode.BICUBIC)
        self.middle = transforms.CenterCrop(image_size)

    def frame(self, image: Image.Image) -> Image.Image:
        middle: Image.Image = self.middle(self.resize(image))
        return middle
