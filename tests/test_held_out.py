"""Looking at a model whose weights the ranks share."""

import torch

from data.dataset import ShardedDataset
from model.diffusion import DiffusionConfig
from model.parallel_unet import ParallelUNetConfig
from model.sampler import SamplerConfig
from training.held_out import preview


def test_remembering_is_left_out_where_weights_are_shared(shards):
    """Shared weights are gathered in whole forward passes."""

    class Net:
        remembered = 0

        def remember(self, cond):
            self.remembered += 1
            return cond

        def __call__(self, zt, t, cond):
            return zt

    how = {
        "model": ParallelUNetConfig(image_size=(32, 32)),
        "diffusion": DiffusionConfig(),
        "device": torch.device("cpu"),
    }
    net, sampler = Net(), SamplerConfig(num_steps=2, guidance_scale=1)
    for even, remembered in ((True, 0), (False, 1)):
        samples, images = preview(
            net, ShardedDataset(shards), 2, size=(32, 32), seed=0, even=even, sampler=sampler, **how
        )
        assert len(samples) == len(images) == 2 and net.remembered == remembered
