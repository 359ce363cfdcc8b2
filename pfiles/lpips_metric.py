"""LPIPS under the module name that the metric notebook of the published code imports."""

from pfiles.lpips import LPIPS

__all__ = ["LPIPS"]
