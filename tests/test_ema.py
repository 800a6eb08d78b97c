import torch
from torch import nn

from training.ema import EMA


def test_the_average_of_a_known_sequence():
    model = nn.Linear(1, 1, bias=False)
    ema, expected = EMA(model, decay=0.5), model.weight.item()
    for n, value in enumerate((1.0, -2.0, 5.0, 0.25, 7.0, 7.0, 7.0, -1.0)):
        model.weight.data.fill_(value)
        ema.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(ema.shadow["weight"].item(), expected)
    assert ema.num_updates == 8


def test_the_swap_leaves_every_bit_as_it_was_also_after_an_error():
    model = nn.Linear(5, 3)
    ema = EMA(model, decay=0.9)
    model.weight.data.mul_(3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    shadow = {name: value.clone() for name, value in ema.shadow.items()}
    try:
        with ema.applied():
            assert torch.equal(model.weight, shadow["weight"]) and not torch.equal(model.weight, before["weight"])
            raise KeyError
    except KeyError:
        pass
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(torch.equal(value, shadow[name]) for name, value in ema.shadow.items())


def test_the_average_and_its_counter_come_back():
    model = nn.Linear(2, 2)
    ema, other = EMA(model, 0.99), EMA(nn.Linear(2, 2), 0.99)
    for _ in range(3):
        ema.update()
    other.load(ema.shadow, ema.num_updates)
    assert other.num_updates == 3 and all(torch.equal(other.shadow[name], ema.shadow[name]) for name in ema.shadow)
    assert other.shadow["weight"].data_ptr() != ema.shadow["weight"].data_ptr()
