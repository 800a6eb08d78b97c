"""Random crops: what a stage whose network takes any size is trained on, drawn from (seed, position) alone."""

from data.randomness import Purpose, keyed_rng
from data.schema import Sample


def crop(sample: Sample, seed: int, position: int, size: tuple[int, int] | None) -> Sample:
    """The sample with a piece of `size` (height, width) in the place of its person; itself for None.

    Every place is as likely.  The other images and the poses stay as they are: what is cropped is told neither.
    """
    if size is None:
        return sample
    down, right = keyed_rng(seed, position, Purpose.CROP).random(2)
    (height, width), whole = size, sample.person.shape
    top, left = int(down * (whole[0] - height + 1)), int(right * (whole[1] - width + 1))
    return sample._replace(person=sample.person[top : top + height, left : left + width])
