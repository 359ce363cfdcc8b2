"""Images with a colour profile, brought to the colours of sRGB."""

from typing import cast

from PIL import Image, ImageCms


def srgb_transform(profile: ImageCms.ImageCmsProfile) -> ImageCms.ImageCmsTransform:
    # Pillow returns this as a number, and takes numbers, but declares an enumeration
    intent = cast(ImageCms.Intent, ImageCms.getDefaultIntent(profile))
    return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), "RGB", "RGB", intent)


def in_srgb(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    """An image in the colours of sRGB, as RGB, or as RGBA where it has transparent pixels."""
    colours = image.convert("RGB")
    ImageCms.applyTransform(colours, transform, inPlace=True)
    if image.has_transparency_data:
        colours.putalpha(image.convert("RGBA").getchannel("A"))
    return colours
