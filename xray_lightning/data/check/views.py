"""What decoding has shown: damaged files, and images unlike the others."""

from collections import Counter
from collections.abc import Mapping

from xray_lightning.data.check.pictures import PLAIN_MODES, Picture
from xray_lightning.data.check.remarks import Remark, remark

NIH_SIZE = (1024, 1024)


def check_pictures(pictures: Mapping[str, Picture], *, nih: bool, one_size: bool) -> list[Remark]:
    """Remarks on images, by their names.

    Args:
        pictures: what each file was found to be.
        nih: whether they are NIH's, of 1024 x 1024.
        one_size: whether the set has one size, so that another one is a fault.
    """
    faults = {name: one for name, one in pictures.items() if one.fault}
    good = {name: one for name, one in pictures.items() if not one.fault}
    cut = {name: one.fault for name, one in faults.items() if one.cut}
    remarks = remark("truncated_image", cut)
    remarks += remark(
        "unreadable_image", {name: one.fault for name, one in faults.items() if not one.cut}
    )
    remarks += remark("blank_image", [name for name, one in good.items() if one.blank])
    remarks += remark(
        "odd_mode", {name: one.mode for name, one in good.items() if one.mode not in PLAIN_MODES}
    )
    return remarks + _sizes(good, nih=nih, one_size=one_size)


def _sizes(good: Mapping[str, Picture], *, nih: bool, one_size: bool) -> list[Remark]:
    if not good:
        return []
    usual, _ = Counter(one.size for one in good.values()).most_common(1)[0]
    other = {
        name: f"{one.size[0]} x {one.size[1]}" for name, one in good.items() if one.size != usual
    }
    remarks = []
    shown = f"{usual[0]} x {usual[1]}"
    if one_size:
        remarks += remark("other_size", other, text=f"images that are not {shown} as the others")
    else:
        remarks += remark("sizes_differ", other, text=f"images that are not {shown}, as most are")
    if nih and usual != NIH_SIZE:
        copies = [name for name, one in good.items() if one.size == usual]
        text = f"images of {shown}, where NIH's are 1024 x 1024: a resized copy"
        remarks += remark("not_original_size", copies, text=text)
    return remarks
