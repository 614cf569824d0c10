"""Scores of arms, and the paired differences of two, against other computations."""

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from modeling_kamim.evaluation.metrics import pack_hits, unpack_hits
from modeling_kamim.study.plan import Study
from modeling_kamim.study.records import Record, best_layer, short_rows
from modeling_kamim.study.summary import KNN, Arm, arms_of, bootstrap, differences, scores

IMAGES = 400


def row(hits, layer="6", protocol="cached", **more):
    hits = np.asarray(hits, bool)
    found = {"protocol": protocol, "layer": layer, "top1": float(hits.mean()), "hits": pack_hits(hits)}
    return {**found, "num_validation_images": len(hits), **more}


def record(tmp_path, arm, seed, rows):
    keys = {"arms": {arm: {"seeds": [seed]}}, "protocols": {"linear": {"protocol": "cached"}}}
    made = Record(tmp_path, Study.read("mine", keys).replicates()[0])
    made.found["evaluations"]["linear"] = {"settings": {}, "rows": short_rows(rows)}
    return made


@pytest.mark.parametrize("count", [1, 7, 8, 9, 2900])
def test_hits_are_packed_and_unpacked(count):
    hits = np.random.default_rng(count).random(count) < 0.4
    assert (unpack_hits(pack_hits(hits), count) == hits).all()
    with pytest.raises(ValueError, match="do not hold the hits"):
        unpack_hits(pack_hits(hits), count + 8)


def test_the_layer_is_chosen_on_held_out_images_alone(tmp_path):
    """The layer with the best validation accuracy is not the one whose probe was best on held-out images."""
    rng = np.random.default_rng(0)
    rows = [
        row(rng.random(IMAGES) < p, str(n), held_out_top1=h)
        for n, p, h in ((1, 0.9, 0.3), (2, 0.5, 0.7), (3, 0.4, 0.6))
    ]
    rows += [row(rng.random(IMAGES) < 0.2, str(n), "knn") for n in (1, 2, 3)]
    assert best_layer(rows)["layer"] == "2"
    found = scores(record(tmp_path, "kamim", 0, rows))
    assert found["linear"].layer == "2" and found["linear, last layer"].layer == "3" and found[KNN].layer == "3"
    assert found["linear"].top1 == rows[1]["top1"] and found["linear"].hits.mean() == rows[1]["top1"]


def test_only_the_layers_that_are_read_keep_their_hits():
    rows = [row([1, 0], str(n), held_out_top1=0.1 * n, confusion=[[1]]) for n in (1, 2, 3)]
    kept = short_rows(rows)
    assert ["hits" in k for k in kept] == [False, False, True] and all("confusion" not in k for k in kept)


def test_a_difference_is_paired_by_seed_and_image(tmp_path):
    rng = np.random.default_rng(1)
    easy = rng.random(IMAGES)  # how easy an image is for every model

    def arm(name, gain, seeds):
        records = []
        for seed in seeds:
            noise = np.random.default_rng((7, seed)).random(IMAGES)
            records.append(
                record(tmp_path, name, seed, [row(0.7 * easy + 0.3 * noise + gain > 0.6, held_out_top1=0.5)])
            )
        return Arm(name, records)

    better, worse = arm("better", 0.04, [0, 1, 2]), arm("worse", 0.0, [2, 1, 0, 5])
    (found,) = [d for d in differences(better, worse) if d.score == "linear"]
    tops = {a.name: {r.replicate.seed: scores(r)["linear"].top1 for r in a.records} for a in (better, worse)}
    assert found.points == pytest.approx(100 * np.mean([tops["better"][s] - tops["worse"][s] for s in (0, 1, 2)]))
    assert sorted(found.seeds) == [0, 1, 2] and found.is_told and found.interval[0] > 0
    (none,) = [d for d in differences(worse, worse) if d.score == "linear"]
    assert none.points == 0 and none.interval == (0, 0) and not none.is_told


def test_the_interval_of_one_seed_is_scipy_s():
    changes = np.random.default_rng(2).choice([-100, 0, 100], p=[0.2, 0.5, 0.3], size=(1, 900)).astype(float)
    known = scipy_bootstrap((changes[0],), np.mean, method="percentile", n_resamples=4000, random_state=0)
    assert bootstrap(changes) == pytest.approx(tuple(known.confidence_interval), abs=0.5)


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(3)
    alike = rng.choice([-100.0, 0, 100], size=(3, 900))
    apart = alike + np.array([[-4.0], [0], [4]])
    width = [np.diff(bootstrap(changes))[0] for changes in (alike, apart)]
    assert width[1] > 1.3 * width[0]


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(60):
        low, high = bootstrap(100 * (rng.random((1, 300)) < 0.3).astype(float))
        covered += low <= 30 <= high
    assert 51 <= covered <= 60


def test_arms_without_results_are_left_out(tmp_path):
    full, empty = record(tmp_path, "full", 0, [row([1, 0], held_out_top1=1.0)]), record(tmp_path, "empty", 0, [])
    empty.found["evaluations"] = {}
    assert list(arms_of([full, empty])) == ["full"]


def test_random_weights_are_told_whatever_their_seeds(tmp_path):
    random = [record(tmp_path, "random", seed, [row([1, 0], held_out_top1=1.0)]) for seed in (0, 1)]
    for found, steps in zip(random, (0, 0), strict=True):
        found.found["pretraining"] = {"steps": steps}
    assert Arm("random", random).is_random
    random[1].found["pretraining"]["steps"] = 5
    assert not Arm("trained", random).is_random and not Arm("scored", []).is_random
