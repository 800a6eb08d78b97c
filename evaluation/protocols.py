"""How papers measure: what makes their numbers differ, as records.

Read off the authors' evaluation scripts; docs/evaluation.md says what is known of each, and what is not.
"""

from typing import Literal, NamedTuple


class Protocol(NamedTuple):
    name: str
    size: tuple[int, int] | None  # (height, width) that images and truth are resized to; None: the truth to the images'
    filter: Literal["lanczos", "bilinear"]  # of Pillow, for that
    grey: bool  # SSIM of grey pictures instead of the mean over colours; the window is Gaussian, 11x11, sigma 1.5
    lpips: Literal["alex", "squeeze"]
    lpips_size: tuple[int, int] | None  # (height, width) that images are resized to for LPIPS
    fid_of: Literal["compared", "given"]  # FID and KID of the pictures as they are compared, or as they come
    fid_resize: Literal["clean", "pytorch-fid"]  # to 299x299: bicubic with antialiasing, or bilinear without
    fid_pairing: Literal["paired", "unpaired", "both"]  # what its FID and KID are reported of
    repaint: bool  # what the network need not draw is taken from the person before measuring


PROTOCOLS = {
    each.name: each
    for each in (
        Protocol("paper", None, "lanczos", False, "alex", None, "compared", "clean", "unpaired", False),
        Protocol("catvton", None, "lanczos", False, "squeeze", None, "compared", "clean", "both", True),
        Protocol("hrviton", None, "bilinear", True, "alex", (128, 128), "compared", "pytorch-fid", "unpaired", False),
        Protocol("ladi", (512, 384), "bilinear", False, "alex", None, "given", "clean", "both", False),
    )
}
NO_SQUEEZE = "no package that can be had ships the weights of LPIPS with SqueezeNet; lpips_alex stands in its place"
