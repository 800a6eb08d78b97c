"""What a diagnosis is made of: pairs, weights, curve, and the step from numbers to words."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.agnostic import GRAY
from data.dataset import ShardedDataset
from data.schema import JOINTS, Sample
from training.diagnosis.answers import Change, Losses
from training.diagnosis.curve import Curve, read_curve
from training.diagnosis.learning import FURTHER, Trial, advised, best, search
from training.diagnosis.page import told
from training.diagnosis.pairs import Pairs, examine
from training.diagnosis.verdicts import Facts, as_values, judge
from training.diagnosis.weights import Block, block_of, movements, whole_parts

BLOCKS = [Block(name, 10, 0.1, 0.01) for name in ("stem", "encoder.levels.0", "garment_unet.stem", "garment_unet.up")]
HEALTHY = Facts(
    step=1000, num_steps=2000, global_batch=8, num_samples=1000, skipped=0, lr=1e-3, lr_now=1e-3, warmup_steps=10,
    weights="ema", pairs=Pairs(64, 0.05, 0.4, 0.2), blocks=BLOCKS, curve=Curve(100, 1.0, 0.2, 0.2, 0.5),
    losses={
        "zt alone on training samples": Losses(64, 0.4, []), "zt alone on held-out samples": Losses(64, 0.4, []),
        "model on training samples": Losses(64, 0.2, []),
        "model on held-out samples": Losses(64, 0.21, []), "ema on training samples": Losses(64, 0.19, []),
    },
    changes=[Change("garment swapped", 0.2, 0.02, 10.0)], swap=0.4, overfit=[Trial(1e-3, 1.0, 0.4, 0.6)], sweep=[],
)  # fmt: skip


def losses(**changes: float) -> dict[str, Losses]:
    """The healthy ones with other means; 'zt', 'model', 'held', 'ema'."""
    return {
        name: replace(each, mean=next((value for key, value in changes.items() if key in name), each.mean))
        for name, each in HEALTHY.losses.items()
    }


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, None),
        ({"pairs": None}, None),
        ({"pairs": Pairs(64, 0.5, 0.4, 0.2)}, "shuffled_pairs"),
        ({"pairs": Pairs(64, 0.25, 0.4, 0.2)}, "doubtful_pairs"),
        ({"pairs": Pairs(8, None, 0.4, 0.2)}, None),
        ({"pairs": Pairs(64, 0.05, 0.99, 0.2)}, "agnostic_image"),
        ({"pairs": Pairs(64, 0.05, 0.0, 0.2)}, "agnostic_image"),
        ({"blocks": [*BLOCKS[:2], *(replace(block, moved=0.0) for block in BLOCKS[2:])]}, "frozen"),
        ({"blocks": [*(replace(block, moved=1e-5) for block in BLOCKS[:3]), replace(BLOCKS[3], moved=0.0)]}, None),
        ({"blocks": [replace(block, moved=0.0) for block in BLOCKS]}, "nothing_moved"),
        ({"blocks": [*BLOCKS[:3], replace(BLOCKS[3], gradient=0.0)]}, "no_gradient"),
        ({"blocks": [*BLOCKS[:3], replace(BLOCKS[3], moved=0.0)], "step": 3}, None),
        ({"warmup_steps": 10_000, "lr_now": 1e-4}, "long_warmup"),
        ({"warmup_steps": 10_000, "lr_now": 1e-4, "num_steps": 500_000}, None),
        ({"overfit": [Trial(1e-3, 1.0, 0.99, 0.01), Trial(1e-1, 1.0, 0.5, 0.5)]}, "low_learning_rate"),
        ({"overfit": [Trial(1e-3, 1.0, 0.8, 0.2), Trial(1e-2, 1.0, 0.3, 0.7)]}, None),
        ({"overfit": [Trial(1e-4, 1.0, 0.5, 0.5), Trial(1e-3, 1.0, None, None)]}, "high_learning_rate"),
        ({"overfit": [Trial(1e-3, 1.0, 1.0, 0.0), Trial(1e-1, 1.0, None, None)]}, "cannot_overfit"),
        (
            {"overfit": [Trial(1e-3, 1.0, None, None)], "sweep": [Trial(1e-5, 1.0, 0.5, 0.5)]},
            "high_learning_rate",
        ),
        ({"skipped": 50}, "skipped_steps"),
        ({"curve": Curve(100, 1.0, 0.3, 0.2, 0.5)}, "rising_loss"),
        ({"losses": losses(ema=0.3)}, "late_average"),
        ({"losses": losses(held=0.3)}, "overfitting"),
        ({"losses": losses(zt=0.2)}, "nothing_learnt"),
        ({"changes": [Change("garment swapped", 0.001, 0.001, 1.0)]}, "ignored_garment"),
        ({"changes": []}, None),
    ],
)
def test_each_fault_is_named_and_nothing_else(changes, name):
    verdicts = judge(replace(HEALTHY, **changes))
    assert [verdict.name for verdict in verdicts] == ([name] if name else [])
    assert all(verdict.evidence and verdict.remedy for verdict in verdicts)


def test_what_follows_from_a_fault_is_not_told():
    ignored = [Change("garment swapped", 0.001, 0.001, 1.0)]
    verdicts = judge(replace(HEALTHY, pairs=Pairs(64, 0.5, 0.4, 0.2), changes=ignored, skipped=50))
    assert [(verdict.kind, verdict.name) for verdict in verdicts] == [
        ("fault", "shuffled_pairs"), ("warning", "skipped_steps")
    ]  # fmt: skip


def test_a_frozen_part_has_one_name():
    names = [block.name for block in BLOCKS[2:]]
    assert whole_parts(names, BLOCKS) == ["garment_unet"] and whole_parts(names[:1], BLOCKS) == names[:1]
    blocks = [*BLOCKS[:2], *(replace(block, moved=1e-9) for block in BLOCKS[2:])]
    told = judge(replace(HEALTHY, blocks=blocks))[0]
    assert told.finding == "garment_unet never trained" and "1.0e-09" in told.evidence and "1000 steps" in told.evidence


def test_a_sweep_gives_the_remedy_its_number():
    overfit = [Trial(1e-5, 1.0, 0.99, 0.01), Trial(1e-3, 1.0, 0.5, 0.5)]
    sweep = [Trial(10.0**-i, 1.0, 0.4, fall) for i, fall in ((5, 0.01), (4, 0.3), (3, 0.68), (2, 0.7), (1, -3.0))]
    assert best(sweep).lr == pytest.approx(1e-2) and advised(sweep) == pytest.approx(1e-3)
    assert advised([Trial(1.0, 1.0, None, None)]) is None
    verdict = judge(replace(HEALTHY, lr=1e-5, overfit=overfit, sweep=sweep))[0]
    assert verdict.name == "low_learning_rate" and verdict.remedy.startswith("optim.lr=1e-03")


@pytest.mark.parametrize(
    ("best", "swept", "said"), [(1e-1, 1e-4, "1e-01"), (1e-1, 1e-2, "1e-02"), (1e-5, 1e-3, "1e-05")]
)
def test_advice_is_on_the_side_of_the_verdict(best, swept, said):
    """A sweep over other samples may find another rate the best."""
    overfit = [Trial(1e-3, 1.0, 0.99, 0.01), Trial(best, 1.0, 0.5, 0.5)]
    sweep = [Trial(swept, 1.0, 0.3, 0.7)]
    verdict = judge(replace(HEALTHY, overfit=overfit, sweep=sweep))[0]
    assert verdict.name.endswith("_learning_rate")
    edge = {1e-1: " at least;", 1e-5: " at most;"}.get(float(said), ";")
    assert verdict.remedy.startswith(f"optim.lr={said}{edge}")


@pytest.mark.parametrize(("own", "lowest", "highest"), [(3.0, 1e-5, 3e2), (1e-7, 1e-8, 1e-2), (1e-3, 1e-4, 1e-1)])
def test_a_search_goes_on_beyond_the_edge_where_the_best_lies(own, lowest, highest):
    """Learning rates to 1e-3 learn, in proportion; above 1e-2 all diverge."""

    def tried(lr: float) -> Trial:
        return Trial(lr, 1.0, None, None) if lr > 5e-2 else Trial(lr, 1.0, 0.0, lr * 500 if lr < 2e-3 else -1.0)

    trials = search([tried(own)], [own / 10, own * 10, own * 100], tried)
    rates = [each.lr for each in trials]
    assert rates == sorted(rates) and len(rates) <= 4 + FURTHER
    assert best(trials).lr == pytest.approx(1e-3 if own < 1 else 3e-4, rel=0.01)
    assert lowest <= rates[0] * 1.01 and rates[-1] <= highest * 1.01


def test_a_search_does_not_end_where_nothing_moves_or_all_diverge():
    still = search([], [1e-12, 1e-11], lambda lr: Trial(lr, 1.0, 1.0, 0.0))
    gone = search([], [1e3, 1e4], lambda lr: Trial(lr, 1.0, None, None))
    assert (still[0].lr, still[-1].lr) == pytest.approx((1e-12, 1e-6)) and gone[0].lr == pytest.approx(1e-2)


def test_what_was_not_looked_at_is_said():
    facts = replace(HEALTHY, overfit=[], curve=Curve(0, None, None, None, None), pairs=Pairs(8, None, 0.4, 0.2))
    assert as_values(HEALTHY, [])["not_looked_at"] == [] and told(HEALTHY, []).count("\n") == 1
    said = told(facts, [])
    assert said.startswith("Nothing of what was looked at speaks against this run.\n\nNot looked at:\n")
    assert [need in said for need in ("--num 16", "--steps 60", "50 lines in stats.jsonl, not 0")] == [True] * 3


@pytest.mark.parametrize("source", ["shards", "photographs"])
def test_shuffled_garments_stand_anywhere(source, request):
    dataset = ShardedDataset(request.getfixturevalue(source))
    samples = [dataset.read(i) for i in range(len(dataset))]
    if source == "photographs":
        samples = samples + [mirrored(sample) for sample in samples]  # 20 are enough to judge
    order = np.random.default_rng(0).permutation(len(samples))
    shuffled = [one._replace(garment=samples[i].garment) for one, i in zip(samples, order, strict=True)]
    true, wrong = examine(samples), examine(shuffled)
    assert true.place < 0.2 and 0.4 < wrong.place < 0.6
    assert 0.1 < true.drawn < 0.7 and true.drawn == wrong.drawn


def mirrored(sample: Sample) -> Sample:
    return sample._replace(person=sample.person[:, ::-1], clothing_agnostic=sample.clothing_agnostic[:, ::-1])


def test_alike_garments_and_few_samples_are_not_judged():
    gray, pose = np.full((8, 8, 3), GRAY, np.uint8), np.zeros((len(JOINTS), 3), np.float32)
    garment, person = gray.copy(), gray.copy()
    garment[2:6, 2:6] = person[2:6, 2:6] = (200, 30, 30)
    same = [Sample(str(i), person, gray, garment, pose, pose) for i in range(20)]
    assert examine(same).place is None and examine(same[:4]).place is None
    assert examine(same).drawn == pytest.approx(16 / 64) and examine(same).garment == pytest.approx(16 / 64)
    assert examine([sample._replace(clothing_agnostic=person) for sample in same]).drawn == 0


def test_movement_is_the_blocks_own_and_decay_is_none():
    initial = {"stem.weight": torch.ones(4), "head.weight": torch.zeros(2), "pool.q.bias": torch.full((3,), 2.0)}
    trained = {"stem.weight": torch.tensor([1.0, 1, 1, 2]), "head.weight": torch.ones(2)}
    trained["pool.q.bias"] = initial["pool.q.bias"] * 0.9
    moved = {block.name: block.moved for block in movements(initial, trained, weight_decay=0.0)}
    assert moved == pytest.approx({"stem": (1 / 7) ** 0.5, "head": 1.0, "pool": 0.1})
    decayed = {block.name: block.moved for block in movements(initial, trained, weight_decay=0.1)}
    assert decayed["pool"] < 1e-6 < decayed["stem"]


@pytest.mark.parametrize(
    ("parameter", "block"),
    [
        ("encoder.levels.0.1.res.conv.weight", "encoder.levels.0"),
        ("garment_unet.decoder.levels.2.0.res.conv.bias", "garment_unet.decoder.levels.2"),
        ("garment_unet.encoder.down.0.weight", "garment_unet.encoder.down"),
        ("garment_unet.stem.weight", "garment_unet.stem"),
        ("person_tokens.null", "person_tokens"),
    ],
)
def test_blocks_are_levels_and_smaller_parts(parameter, block):
    assert block_of(parameter) == block


def test_a_damaged_curve_tells_what_it_can(tmp_path):
    path = tmp_path / "stats.jsonl"
    assert read_curve(path) == Curve(0, None, None, None, None)
    lines = [f'{{"step": {i}, "loss": {1 / i}, "grad_norm": 2.0}}' for i in range(1, 101)]
    path.write_text("\n".join(["{", "[]", '{"step": 1, "loss": null, "grad_norm": 1}', *lines, '{"step": 101, "lo']))
    curve = read_curve(path)
    assert curve.lines == 100 and curve.grad_norm == 2.0 and curve.best == curve.last
    assert curve.first == pytest.approx(np.mean([1 / i for i in range(1, 11)]))
