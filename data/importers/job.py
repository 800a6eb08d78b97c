"""What an importer hands over: a list of jobs, each of which makes one sample when it is asked to."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, overload

from data.schema import Sample


class Made(NamedTuple):
    """A sample, and what the report says of it."""

    sample: Sample
    photo_size: tuple[int, int]  # (height, width) of the person's photograph
    notes: tuple[str, ...] = ()  # what an estimate could not tell


class Job(NamedTuple):
    """One sample to be made."""

    key: str
    person_id: str  # samples that share a person or a garment go to the same split
    garment_id: str
    place: str  # "test_pairs.txt row 3": where the sample is listed, for messages
    load: Callable[[], Made]  # can be pickled; raises ValueError naming file and remedy, Unusable when all jobs would


class JobList(Sequence[Job]):
    """Jobs that exist only while they are looked at, so that millions need little memory."""

    def __init__(self, items: Sequence[Any], job: Callable[[Any], Job]):
        self.items, self.job = items, job

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Job: ...
    @overload
    def __getitem__(self, index: slice) -> "JobList": ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return JobList(self.items[index], self.job)
        return self.job(self.items[index])
