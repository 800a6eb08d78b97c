"""What single layers compute, with weights as training leaves them: zero starts hide what is wired wrongly."""

import pytest
import torch

from model.layers import CrossAttention, ResBlock, pose_maps
from test_parallel_unet import inputs, network


def test_without_a_garment_cross_attention_answers_the_bias_of_v():
    """Whatever is asked; biases start at 0, and are not after training."""
    layer, x, garment = CrossAttention(8, 2), torch.randn(2, 8, 4, 6), torch.randn(1, 24, 8)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    nothing = torch.zeros_like(garment)
    torch.testing.assert_close(layer(x, garment), layer(x, torch.cat([garment, nothing])))


def test_every_up_block_reads_the_output_of_its_mirror_block():
    net, made, read = network(), {}, {}
    for level, blocks in enumerate(net.encoder.levels):
        for i, block in enumerate(blocks):
            block.register_forward_hook(lambda block, given, out, key=(level, i): made.update({key: out}))
    for level, blocks in zip(net.decoder.order, net.decoder.levels, strict=True):
        for i, block in enumerate(blocks):
            key = (level, len(blocks) - 1 - i)
            block.register_forward_pre_hook(lambda block, given, key=key: read.update({key: given[0]}))
    net(*inputs())
    assert made.keys() == read.keys() and len(made) == 4
    for key, out in made.items():
        assert torch.equal(read[key][:, -out.shape[1] :], out), key


def test_film_is_its_scale_and_then_its_shift():
    block, x = ResBlock(4, 4, 8), torch.randn(2, 4, 3, 3)
    with torch.no_grad():
        block.film.bias.copy_(torch.cat([torch.full((4,), 0.5), torch.full((4,), 3.0)]))
    torch.testing.assert_close(block.modulated(x, torch.randn(2, 8)), 1.5 * x + 3)


@pytest.mark.parametrize("size", [(32, 32), (48, 32)])
def test_a_pose_is_drawn_where_its_joints_are(size):
    pose = torch.tensor([[[0.25, 0.75, 1.0], [0.5, 0.5, 0.0]]])
    maps = pose_maps(pose, size)
    assert maps.shape == (1, 4, *size) and not maps[:, 1::2].any(), "an invisible joint is nowhere"
    for each in maps[0, ::2]:
        row, column = divmod(int(each.argmax()), size[1])
        assert abs((row + 0.5) / size[0] - 0.75) < 0.05 and abs((column + 0.5) / size[1] - 0.25) < 0.05
    down, across = maps[0, 0, :, size[1] // 4], maps[0, 0, size[0] * 3 // 4]
    assert abs((down > 0.5).sum() - (across > 0.5).sum()) <= 1, "round, in pixels"


def test_each_pose_has_tokens_of_its_own():
    net = network()
    _, t, cond = inputs()
    pose, num = net.embed(t, cond).pose, cond.person_pose.shape[1]
    assert torch.equal(pose[:, :num], net.person_tokens(cond.person_pose))
    assert torch.equal(pose[:, num:], net.garment_tokens(cond.garment_pose))
