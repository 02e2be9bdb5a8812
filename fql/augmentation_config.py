"""Settings of photometric augmentation; free of JAX."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AugmentationConfig:
    """Changes of the images that training sees, drawn for each sample; all off by default."""

    brightness: float = 0.0
    """Up to this much of the full range is added or taken away (0: off)."""
    contrast: float = 0.0
    """Contrast is scaled by a factor between 1 minus this and 1 plus this (0: off)."""
    saturation: float = 0.0
    """Saturation is scaled by a factor between 1 minus this and 1 plus this (0: off)."""
    hue: float = 0.0
    """Hue is turned by up to this part of the colour circle, at most 0.5 (0: off)."""
    grayscale_probability: float = 0.0
    """Probability that a sample's images lose their colours."""
    blur_probability: float = 0.0
    """Probability that a sample's images are blurred, by a Gaussian of up to 1 pixel."""
    cutout_probability: float = 0.0
    """Probability that a rectangle a quarter as high and as wide as the images is blackened."""

    @property
    def is_on(self) -> bool:
        """Whether anything is changed at all."""
        return self != AugmentationConfig()
