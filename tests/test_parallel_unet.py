"""The Parallel-UNet has the paper's size, trains all of itself, and keeps samples and null joints apart."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.parallel import scatter_gather
from torch.utils._python_dispatch import TorchDispatchMode

from model.conditions import Conditions
from model.layers import (
    CrossAttention,
    GroupNorm,
    ResBlock,
    SelfAttention,
    folded_identity,
    group_norm,
    positional_encoding,
    to_tokens,
)
from model.parallel_unet import BASE_UNET, SR_UNET, ParallelUNet, ParallelUNetConfig

TINY = ParallelUNetConfig(
    image_size=(16, 24), channels=(8, 12, 16), num_blocks=(1, 2, 1), attention_levels=(1, 2), head_dim=4, emb_dim=16
)
TINY_SR = TINY.model_copy(update={"lowres": True, "attention_levels": (2,), "garment_num_blocks": (1, 1, 2)})


def network(config: ParallelUNetConfig = TINY, trained: bool = True) -> ParallelUNet:
    """A network; trained: with what starts at 0 moved away from it, so that everything can be seen in the output."""
    torch.manual_seed(0)
    net = ParallelUNet(config)
    if trained:
        for module in net.modules():
            if isinstance(module, ResBlock):
                torch.nn.init.normal_(module.film.weight, std=0.1)
                torch.nn.init.normal_(module.conv2.weight, std=0.1)
        torch.nn.init.normal_(net.head.weight, std=0.1)
    return net


def inputs(config: ParallelUNetConfig = TINY, batch: int = 2) -> tuple[Tensor, Tensor, Conditions]:
    height, width = config.image_size
    image = lambda: torch.rand(batch, 3, height, width) * 2 - 1  # noqa: E731
    pose = lambda: torch.cat([torch.rand(batch, 18, 2), torch.ones(batch, 18, 1)], -1)  # noqa: E731
    aug = torch.rand(batch, config.num_aug_levels)
    cond = Conditions(image(), image(), pose(), pose(), aug, image() if config.lowres else None)
    return torch.randn(batch, 3, height, width), torch.rand(batch), cond


def gradients(net: ParallelUNet) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in net.named_parameters()}


@pytest.mark.parametrize(("config", "count"), [(BASE_UNET, 1.13e9), (SR_UNET, 1.06e9)], ids=["base_unet", "sr_unet"])
def test_parameter_count_of_the_paper(config, count):
    with torch.device("meta"):
        net = ParallelUNet(config)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(count, rel=0.005)


@pytest.mark.parametrize("config", [TINY, TINY_SR], ids=["base_unet", "sr_unet"])
@pytest.mark.parametrize("keep", [(1.0, 1.0), (0.0, 0.0), (1.0, 0.0)])
def test_every_parameter_has_a_gradient_at_the_first_step(config, keep):
    net = network(config, trained=False)
    zt, t, cond = inputs(config)
    net(zt, t, cond.drop(torch.tensor(keep))).sum().backward()
    assert [name for name, grad in gradients(net).items() if grad is None] == []


def test_every_parameter_matters():
    """With kept conditions and a missing joint, no gradient is 0: nothing in the network is idle."""
    net = network()
    zt, t, cond = inputs()
    cond.person_pose[0, 3, 2] = cond.garment_pose[0, 4, 2] = 0
    net(zt, t, cond).square().sum().backward()
    # A key's bias shifts all scores of a query alike, which softmax ignores: only its value half has a gradient.
    assert [name for name, grad in gradients(net).items() if not grad.abs().max() > 0] == []


def test_first_output_is_zero():
    zt, t, cond = inputs()
    assert torch.equal(network(trained=False)(zt, t, cond), torch.zeros_like(zt))


@pytest.mark.parametrize("field", ["clothing_agnostic", "garment", "person_pose", "garment_pose", "noise_aug_level"])
def test_every_condition_is_heard(field):
    net = network()
    zt, t, cond = inputs()
    changed = cond._replace(**{field: getattr(cond, field) * 0.5})
    assert not torch.allclose(net(zt, t, cond), net(zt, t, changed), atol=1e-5)


@pytest.mark.parametrize("field", ["person_pose", "garment_pose", "noise_aug_level"])
def test_film_hears_poses_and_noise_levels(field):
    """The poses also reach the self-attention: their pooled sum must not be lost behind it."""
    net = network()
    _, t, cond = inputs()
    changed = cond._replace(**{field: getattr(cond, field) * 0.5})
    assert not torch.allclose(net.embed(t, cond).emb, net.embed(t, changed).emb, atol=1e-3)


def test_time_and_lowres_are_heard():
    net = network(TINY_SR)
    zt, t, cond = inputs(TINY_SR)
    out = net(zt, t, cond)
    assert not torch.allclose(out, net(zt, t + 0.01, cond), atol=1e-5)
    assert not torch.allclose(out, net(zt, t, cond._replace(lowres=-cond.lowres)), atol=1e-3)


def test_coordinates_of_missing_joints_are_never_read():
    net = network()
    zt, t, cond = inputs()
    cond.person_pose[:, :5, 2] = cond.garment_pose[:, 2:9, 2] = 0
    out = net(zt, t, cond)
    cond.person_pose[:, :5, :2] = 1e6
    cond.garment_pose[:, 2:9, :2] = torch.nan
    moved = net(zt, t, cond)
    assert torch.equal(out, moved)
    moved.sum().backward()
    assert all(grad.isfinite().all() for grad in gradients(net).values())


def test_missing_joints_are_null_tokens():
    net = network()
    cond = inputs()[2]
    seen = net.person_tokens(cond.person_pose)
    missing = net.person_tokens(cond.person_pose * torch.tensor([1.0, 1.0, 0.0]))
    expected = net.person_tokens.norm(net.person_tokens.null + net.person_tokens.joint)
    assert torch.equal(missing, expected.expand_as(missing))
    assert not torch.allclose(seen, missing, atol=0.1)
    assert torch.equal(net.person_tokens(cond.null().person_pose), missing)


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_attention_adds_its_input(kind):
    """Not its normalised input: with a silent output layer, attention is the identity bit for bit."""
    x = torch.randn(2, 8, 4, 6) * 3 + 1
    layer, other = (
        (SelfAttention(8, 2, 16), torch.randn(2, 5, 16))
        if kind == "self"
        else (CrossAttention(8, 2), torch.randn(2, 24, 8))
    )
    assert not torch.allclose(layer(x, other), x, atol=1e-3)
    torch.nn.init.zeros_(layer.out.weight)
    torch.nn.init.zeros_(layer.out.bias)
    assert torch.equal(layer(x, other), x)


def test_self_attention_is_equation_3_with_the_pose_in_keys_and_values():
    layer, x, pose = SelfAttention(8, 1, 16), torch.randn(1, 8, 2, 3), torch.randn(1, 5, 16)
    tokens = to_tokens(layer.norm(x))[0]  # (HW, C)
    q, k, v = layer.qkv(tokens).split(8, -1)
    pose_k, pose_v = layer.pose_kv(pose[0]).split(8, -1)
    k, v = torch.cat([k, pose_k]), torch.cat([v, pose_v])
    expected = x + layer.out(torch.softmax(q @ k.T / 8**0.5, -1) @ v).T.view(1, 8, 2, 3)
    torch.testing.assert_close(layer(x, pose), expected)


def test_samples_do_not_mix():
    net = network()
    zt, t, cond = inputs()
    zt2, t2, cond2 = inputs()
    join = lambda a, b: torch.cat([a[:1], b[1:]])  # noqa: E731
    changed = Conditions(*(join(a, b) for a, b in zip(cond[:5], cond2[:5], strict=True)))
    out, other = net(zt, t, cond), net(join(zt, zt2), join(t, t2), changed)
    torch.testing.assert_close(out[0], other[0], rtol=0, atol=1e-6)
    assert not torch.allclose(out[1], other[1], atol=1e-2)


def test_checkpointing_changes_nothing_but_memory(monkeypatch):
    zt, t, cond = inputs()
    plain, saving = network(), network()
    saving.set_activation_checkpointing(True)
    calls = []
    forward = ResBlock.forward
    monkeypatch.setattr(ResBlock, "forward", lambda self, *args: (calls.append(self), forward(self, *args))[1])
    counts, outputs = [], []
    for net in (plain, saving):
        calls.clear()
        outputs.append(net(zt, t, cond))
        outputs[-1].square().sum().backward()
        counts.append(len(calls))
    assert counts[1] == 2 * counts[0]  # every block ran a second time
    assert torch.equal(*outputs)
    for name, grad in gradients(plain).items():
        torch.testing.assert_close(gradients(saving)[name], grad, msg=name)


def test_checkpointing_of_levels_recomputes_their_blocks_alone(monkeypatch):
    zt, t, cond = inputs()
    net, calls, forward = network(), [], ResBlock.forward
    monkeypatch.setattr(ResBlock, "forward", lambda self, *args: (calls.append(self), forward(self, *args))[1])
    net(zt, t, cond).square().sum().backward()
    plain, total = gradients(net), len(calls)
    for levels in ([0], [1, 2], []):
        net.zero_grad(set_to_none=True)
        net.set_activation_checkpointing(levels)
        calls.clear()
        net(zt, t, cond).square().sum().backward()
        again = [block for block in set(calls) if calls.count(block) == 2]
        unets = [net.encoder, net.garment_unet.encoder]
        expected = [block.res for unet in unets for level in levels for block in unet.levels[level]]
        for decoder in (net.decoder, net.garment_unet.decoder):
            levels_there = zip(decoder.order, decoder.levels, strict=True)
            expected += [block.res for level, blocks in levels_there if level in levels for block in blocks]
        assert set(again) == set(expected) and len(calls) == total + len(again)
        for name, grad in gradients(net).items():
            torch.testing.assert_close(plain[name], grad, msg=name)


def test_lean_norms_change_nothing_in_fp32():
    zt, t, cond = inputs()
    plain, lean = network(), network()
    lean.set_lean_norms(True)
    outputs = [net(zt, t, cond) for net in (plain, lean)]
    assert torch.equal(*outputs)
    for out in outputs:
        out.square().sum().backward()
    assert all(torch.equal(grad, gradients(lean)[name]) for name, grad in gradients(plain).items())


def test_lean_norms_read_and_write_bf16_and_stay_near():
    """Where CUDA's autocast computes norms in fp32, which a CPU shows by a cast: the norms' own input and output."""
    zt, t, cond = inputs()
    net, seen = network(), []
    exact = net(zt, t, cond)
    exact.square().mean().backward()
    wanted = torch.cat([grad.flatten() for grad in gradients(net).values()])
    net.zero_grad()
    net.set_lean_norms(True)
    for module in net.modules():
        if isinstance(module, GroupNorm):
            module.register_forward_hook(lambda module, args, out: seen.append({args[0].dtype, out.dtype}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(zt, t, cond)
    out.square().mean().backward()
    assert all(dtypes == {torch.bfloat16} for dtypes in seen) and len(seen) > 20
    torch.testing.assert_close(out, exact, rtol=0, atol=0.05 * exact.abs().max().item())
    found = torch.cat([grad.flatten() for grad in gradients(net).values()])
    assert found.dtype == torch.float32 and (found - wanted).norm() < 0.05 * wanted.norm()


def test_a_lean_norm_gives_its_kernel_one_type():
    """CUDA's kernel refuses a scale in fp32 beside an input in bf16 (aten/native/cuda/group_norm_kernel.cu)."""
    norm, seen = group_norm(8), []
    norm.lean = True

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "native_group_norm" in str(func):
                seen.append([x.dtype for x in args if isinstance(x, Tensor)])
            return func(*args, **(kwargs or {}))

    x = torch.randn(2, 8, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    with Spy(), torch.autocast("cpu", dtype=torch.bfloat16):
        norm(x).sum().backward()
    assert len(seen) == 2 and {dtype for dtypes in seen for dtype in dtypes} == {torch.bfloat16}
    assert norm.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("config", [TINY, TINY_SR, BASE_UNET, SR_UNET])
def test_meta_device(config):
    with torch.device("meta"):
        zt, t, cond = inputs(config, 2)
        assert ParallelUNet(config)(zt, t, cond).shape == (2, 3, *config.image_size)


def test_channels_last():
    zt, t, cond = inputs()
    plain, last = network(), network().to(memory_format=torch.channels_last)
    to_last = lambda x: x.contiguous(memory_format=torch.channels_last)  # noqa: E731
    cond_last = cond._replace(clothing_agnostic=to_last(cond.clothing_agnostic), garment=to_last(cond.garment))
    a, b = plain(zt, t, cond), last(to_last(zt), t, cond_last)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    a.square().mean().backward()
    b.square().mean().backward()
    for name, grad in gradients(plain).items():
        torch.testing.assert_close(gradients(last)[name], grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compile(checkpointing):
    """One graph without breaks; compiled in place, so that checkpoint keys stay clean."""
    config = TINY.model_copy(update={"channels": (8, 12), "num_blocks": (1, 1), "attention_levels": (1,)})
    zt, t, cond = inputs(config)
    plain, compiled = network(config), network(config)
    compiled.set_activation_checkpointing(checkpointing)
    compiled.compile(fullgraph=True, backend="aot_eager")
    a, b = plain(zt, t, cond), compiled(zt, t, cond)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    a.square().sum().backward()
    b.square().sum().backward()
    for name, grad in gradients(plain).items():
        torch.testing.assert_close(gradients(compiled)[name], grad, rtol=1e-3, atol=1e-3, msg=name)
    assert list(plain.state_dict()) == list(compiled.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    net = network()
    zt, t, cond = inputs()
    exact = net(zt, t, cond)
    with torch.autocast("cpu", dtype=dtype):
        out = net(zt, t, cond)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, exact, rtol=0, atol=0.05 * exact.abs().max().item())


def test_bfloat16_weights():
    zt, t, cond = inputs()
    assert network().bfloat16()(zt, t, cond).isfinite().all()


@pytest.mark.parametrize("with_null", [False, True])
def test_data_parallel_splits_conditions(with_null, monkeypatch):
    """nn.DataParallel cuts a Conditions along the batch.  The copy to a GPU is replaced by a cut on the CPU."""
    cut = lambda targets, sizes, dim, x: x.chunk(len(targets), dim)  # noqa: E731
    monkeypatch.setattr(scatter_gather.Scatter, "apply", cut)
    net = network()
    zt, t, cond = inputs()
    cond = cond._replace(with_null=with_null)
    parts = scatter_gather.scatter((zt, t, cond), [0, 1])
    assert [type(part[2]) for part in parts] == [Conditions, Conditions]
    out = torch.cat([net(*part) for part in parts])
    torch.testing.assert_close(out, net(zt, t, cond), rtol=1e-5, atol=1e-5)


def test_lowres_is_required_or_refused():
    zt, t, cond = inputs(TINY_SR)
    with pytest.raises(ValueError, match=r"lowres is missing.*lowres: false"):
        network(TINY_SR)(zt, t, cond._replace(lowres=None))
    with pytest.raises(ValueError, match=r"lowres is given.*lowres: false"):
        network(TINY)(zt, t, cond)


def test_positional_encoding_is_fine_and_float32():
    fine = positional_encoding(torch.tensor([0.5, 0.5005], dtype=torch.float64), 64)
    assert fine.dtype == torch.float32
    assert (fine[0] - fine[1]).norm() > 0.4  # half a step of DDPM's 1000 is told apart
    assert positional_encoding(torch.zeros(2, 3), 64).shape == (2, 3, 64)


@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (12, 3), (48, 12), (128, 32), (1024, 32), (4, 1), (150, 30)])
def test_groups(channels, groups):
    assert group_norm(channels).num_groups == groups


def test_residual_blocks_start_as_identity():
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    torch.testing.assert_close(ResBlock(8, 8, 16)(x, emb), x)
    for c_out, c_in in [(8, 16), (16, 8), (8, 20)]:
        variance = (folded_identity(c_out, c_in) ** 2).sum(1)
        torch.testing.assert_close(variance, torch.ones(c_out))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": (100, 128)}, r"image_size: \(100, 128\) is halved 3 times; use multiples of 8"),
        ({"num_blocks": (1, 2, 3)}, r"num_blocks: .* has 3 entries, channels has 4; give one a level"),
        ({"garment_num_blocks": (1,)}, r"garment_num_blocks: .* has 1 entries"),
        ({"attention_levels": (1, 3)}, r"attention_levels: \(1, 3\) must .* the last level, 3, .* example \(2, 3\)"),
        ({"attention_levels": (1, 2)}, r"attention_levels: "),
        ({"attention_levels": ()}, r"attention_levels"),
        ({"attention_levels": (0, 1, 2, 3, 4)}, r"attention_levels: "),
        ({"head_dim": 96}, r"head_dim: 96 does not divide the 512 channels of attended level 2; use a divisor"),
        ({"emb_dim": 100}, r"emb_dim: 100 must be a multiple of 8"),
        ({"num_blocks": (0, 1, 1, 1)}, r"num_blocks"),
        ({"chanels": (8,)}, r"chanels"),
    ],
)
def test_config_says_what_is_wrong(change, message):
    with pytest.raises(ValidationError, match=message):
        ParallelUNetConfig(**change)


@pytest.mark.parametrize("config", [TINY, TINY_SR], ids=["base_unet", "sr_unet"])
@pytest.mark.parametrize("garment_time", [True, False])
def test_both_branches_of_guidance_share_one_garment_pass(config, garment_time):
    config = config.model_copy(update={"garment_time": garment_time})
    net = network(config)
    zt, t, cond = inputs(config)
    passes = []
    net.garment_unet.register_forward_hook(lambda module, args, result: passes.append(len(args[0])))
    with torch.no_grad():
        apart = torch.stack([net(zt, t, cond), net(zt, t, cond.null())], 1)
        assert passes == [2, 2]
        known = net.remember(cond)
        together = net(zt, t, known._replace(with_null=True))
        assert passes == [2, 2, 2]
        again = net(zt, 0.5 * t, known._replace(with_null=True))
        assert passes == [2, 2, 2] + [2] * garment_time
        assert torch.allclose(together, apart, atol=1e-5)
        assert torch.allclose(again, torch.stack([net(zt, 0.5 * t, cond), net(zt, 0.5 * t, cond.null())], 1), atol=1e-5)
        assert not torch.allclose(together[:, 0], together[:, 1], atol=1e-2)
