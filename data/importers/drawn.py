"""Drawn people: a data set that needs no photographs."""

from functools import partial

from data.importers.job import Job, JobList, Made
from data.preprocess import Preparation, make_sample
from data.synthetic import draw_pair

OVERSAMPLING = 2  # they are drawn larger than the samples made of them, as real photographs are


def list_jobs(how: Preparation, num: int, seed: int) -> JobList:
    """One job for each of num pairs; another seed draws other people and garments."""
    return JobList(range(num), partial(_job, how, seed))


def _job(how: Preparation, seed: int, index: int) -> Job:
    key = f"{seed}-{index:07d}"
    return Job(key, key, key, f"drawing {index}", partial(load, key, seed, index, how))


def load(key: str, seed: int, index: int, how: Preparation) -> Made:
    size = (OVERSAMPLING * how.size[0], OVERSAMPLING * how.size[1])
    person, garment = draw_pair(seed, index, size)
    return Made(make_sample(key, person, garment, how), size)
