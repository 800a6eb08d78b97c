import numpy as np
import pytest

from data.importers.job import Job, JobList
from data.split import components, split, survey


def listed(pairs):
    """One job for each (person, garment)."""
    return [Job(f"{i}", person, garment, f"row {i}", None) for i, (person, garment) in enumerate(pairs)]


def random_pairs(num, persons, garments, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (f"p{p}", f"g{g}")
        for p, g in zip(rng.integers(persons, size=num), rng.integers(garments, size=num), strict=True)
    ]


def test_samples_that_share_a_person_or_a_garment_are_one_group():
    known = survey(listed([("a", "1"), ("b", "2"), ("a", "3"), ("c", "3"), ("2", "b"), ("d", "4")]))
    group = components(known.persons, known.garments)
    assert group[0] == group[2] == group[3] and len(set(group.tolist())) == 4


def test_components_are_those_of_a_search():
    """Against a breadth-first search, over many sparse graphs."""
    for seed in range(30):
        pairs = random_pairs(60, 50, 50, seed)
        known = survey(listed(pairs))
        group, seen = components(known.persons, known.garments), {}
        for start in range(len(pairs)):
            reached, edge = {start}, [start]
            while edge:
                at = edge.pop()
                new = {
                    i
                    for i, pair in enumerate(pairs)
                    if i not in reached and (pair[0] == pairs[at][0] or pair[1] == pairs[at][1])
                }
                reached |= new
                edge += new
            seen[start] = reached
        assert all((group[i] == group[j]) == (j in seen[i]) for i in range(60) for j in range(60))


@pytest.mark.parametrize("shares", [(0.9, 0.05, 0.05), (0.8, 0.2), (0.5, 0.0, 0.5)])
def test_splits_are_disjoint_whole_and_of_the_right_size(shares):
    pairs = random_pairs(2000, 3000, 3000)
    places, remark = split(survey(listed(pairs)), shares, seed=3)
    assert remark == "" and sorted(np.concatenate(list(places.values())).tolist()) == list(range(2000))
    assert all((np.diff(where) > 0).all() for where in places.values()), "in the order of the list"
    for side in (0, 1):
        names = [{pairs[i][side] for i in where} for where in places.values()]
        assert sum(map(len, names)) == len(set.union(*names)), "nobody is in two splits"
    wanted = [share for share in shares if share]
    assert [len(where) / 2000 for where in places.values()] == pytest.approx(wanted, abs=0.002)
    assert "val" not in places or shares[1]


def test_a_split_is_drawn_by_the_seed_and_not_by_the_order_of_the_list():
    pairs = random_pairs(300, 400, 400)

    def chosen(pairs, seed):
        places, _ = split(survey(listed(pairs)), (0.5, 0.5), seed)
        return {pairs[i] for i in places["val"]}

    assert chosen(pairs, 0) == chosen(pairs[::-1], 0) != chosen(pairs, 1)
    assert 0.3 < len(chosen(pairs, 0) & chosen(pairs, 1)) / 150 < 0.7


def test_a_group_that_is_too_large_is_told():
    pairs = [(f"p{i}", "one") for i in range(80)] + [(f"q{i}", f"g{i}") for i in range(20)]
    places, remark = split(survey(listed(pairs)), (0.5, 0.25, 0.25), 0)
    assert len(places["train"]) == 80 and set(places["train"].tolist()) == set(range(80))
    assert "\n" not in remark and "80 of 100 samples" in remark and "train 80, val 10, test 10" in remark
    with pytest.raises(ValueError, match=r"--split-shares: val would be empty: .* 80 of 80 samples; give it no share"):
        split(survey(listed(pairs[:80])), (0.9, 0.1), 0)


def test_keys_that_are_none_or_come_twice():
    jobs = listed([("a", "1"), ("b", "2"), ("c", "3")])
    with pytest.raises(ValueError, match=r"row 2: names the same sample as row 0, '0'; remove one"):
        survey([*jobs[:2], jobs[2]._replace(key="0")])
    for key in ("", "a\udcff"):
        with pytest.raises(ValueError, match=r"row 0: its name .* is empty or not UTF-8; rename"):
            survey([jobs[0]._replace(key=key)])


def test_the_fingerprint_is_that_of_the_whole_list():
    pairs = random_pairs(20, 20, 20)
    whole = survey(listed(pairs)).fingerprint
    assert whole == survey(JobList(listed(pairs), lambda job: job)).fingerprint
    others = [listed(pairs[::-1]), listed(pairs)[:-1], listed([("x", "y"), *pairs[1:]])]
    assert whole not in {survey(other).fingerprint for other in others}
