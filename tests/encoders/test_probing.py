"""The linear probe against NumPy's least squares, and on targets that it cannot predict."""

import numpy as np

from encoders.probing import PENALTIES, fit_probe, r_squared


def test_a_linear_relation_is_found():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 6)) * [1, 10, 0.01, 1, 1, 1] + 5
    features[:, 5] = 2  # A dead feature.
    targets = features @ rng.normal(size=(6, 3)) + 0.1 * rng.normal(size=(400, 3)) - 7
    fitted = fit_probe(features[:300], targets[:300])(features[300:])
    design = np.concatenate([features, np.ones((400, 1))], axis=1)
    solution = np.linalg.lstsq(design[:300], targets[:300], rcond=None)[0]
    np.testing.assert_allclose(fitted, design[300:] @ solution, atol=0.1)
    assert (r_squared(fitted, targets[300:]) > 0.9).all()


def test_each_target_has_the_penalty_that_generalises():
    """Many features and few rows: noise needs a strong penalty, an exact relation a weak one."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(150, 100))
    weights = rng.normal(size=100)
    noisy = features @ weights * 0.05 + rng.normal(size=150)
    targets = np.stack([noisy, features @ weights], axis=1)
    test = rng.normal(size=(1000, 100))
    noise_score, clean_score = r_squared(
        fit_probe(features, targets)(test), np.stack([0.05 * test @ weights, test @ weights], 1)
    )
    assert clean_score > 0.999
    solution = np.linalg.lstsq(features, noisy, rcond=None)[0]
    unpenalised = r_squared((test @ solution)[:, None], (0.05 * test @ weights)[:, None])
    assert noise_score > unpenalised[0] + 0.3
    assert len(PENALTIES) > 1


def test_more_features_than_rows():
    """Repeated features only rescale the penalty, without a visible effect."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 20))
    targets = features @ rng.normal(size=(20, 2)) + 0.01 * rng.normal(size=(200, 2))
    probe, wide = (fit_probe(x[:100], targets[:100]) for x in (features, np.tile(features, (1, 8))))
    assert wide.weights.shape == (160, 2)
    np.testing.assert_allclose(
        wide(np.tile(features, (1, 8))[100:]), probe(features[100:]), atol=0.01
    )


def test_r_squared():
    targets = np.asarray([[0.0, 5], [1, 5], [2, 5]])
    assert r_squared(targets, targets)[0] == 1
    means = np.broadcast_to(targets.mean(axis=0), targets.shape)
    np.testing.assert_equal(r_squared(means, targets), [0, np.nan])
    assert r_squared(targets[::-1], targets)[0] == 1 - 8 / 2
