"""From a loader's batch to what the network is given."""

import pytest
import torch

from data.dataset import ShardedDataset
from data.loader import collate
from model.diffusion import to_uint8, to_unit_range
from training.batch import clean_conditions
from training.config import Config


@pytest.mark.parametrize("field", ["clothing_agnostic", "garment"])
def test_images_are_in_one_range(field, shards):
    dataset = ShardedDataset(shards)
    samples = [dataset.read(i) for i in range(3)]
    batch = collate([0, 1, 2], samples, [()] * 3)
    cond = clean_conditions(batch, to_unit_range(batch.person), Config().model)
    assert torch.equal(to_uint8(getattr(cond, field)), getattr(batch, field))
