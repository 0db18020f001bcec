"""Can a classifier tell real lesions from planted ones? Cross-validation by patient, and AUCs with their intervals.

Fixed beforehand: the random forest is what counts, logistic regression is only reported. AUC 0.5 means
indistinguishable, 1 always told apart. Each part of the cross-validation leaves out whole patients, so that nothing
learned from a patient is tested on that patient; the probabilities of all parts go into one AUC. Both lesions of a pair
are of one patient, so every part trains and tests on as many real lesions as planted ones.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nnunetv2_freetumor.evaluation.resampling import Values, Weights, bound, paired_difference, resample_patients, swap
from nnunetv2_freetumor.evaluation.scores import Difference, Estimate
from nnunetv2_freetumor.experiments.realism.features import FEATURE_GROUPS, FEATURES

_MOST_PARTS = 10
_TREES, _LEAF = 300, 3
_SHUFFLES = 3  # of each feature, for its importance

Table = Float[np.ndarray, "lesions features"]


class Pairs(NamedTuple):
    """Real lesions and their planted partners, row by row."""

    real: Table
    planted: Table
    patient: Int[np.ndarray, "lesions"]  # number, from 0


class Votes(NamedTuple):
    """Out-of-fold probabilities of being real."""

    real: Float[np.ndarray, "lesions"]
    planted: Float[np.ndarray, "lesions"]


class Clue(NamedTuple):
    """How far one feature gives planted lesions away.

    Field names are a file format: realism.json. That is why there are eight.
    """

    feature: str
    group: str
    importance: float  # what the forest's AUC loses when the feature is shuffled out of fold
    auc: float  # of the feature alone; above .5: larger in real lesions
    ks: float  # Kolmogorov-Smirnov distance
    shift_sd: float  # Wasserstein distance in standard deviations of the real lesions
    real_median: float
    planted_median: float


class Realism(NamedTuple):
    """The result for one generator. Field names are a file format: realism.json, all but `votes`."""

    name: str
    auc: Estimate  # of the random forest
    auc_linear: Estimate  # of logistic regression
    by_group: dict[str, Estimate]  # the forest with the features of one group
    clues: tuple[Clue, ...]  # worst first
    votes: Votes


def assess(name: str, pairs: Pairs, seed: int) -> Realism:
    """Train both classifiers on a generator's pairs and find what gives it away."""
    model = forest(seed)
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    votes, importance = _vote_and_shuffle(model, pairs, seed)
    by_group = {}
    for group, names in FEATURE_GROUPS.items():
        columns = [FEATURES.index(feature) for feature in names]
        part = pairs._replace(real=pairs.real[:, columns], planted=pairs.planted[:, columns])
        by_group[group] = auc_of(vote(model, part), pairs.patient, seed)
    return Realism(
        name,
        auc_of(votes, pairs.patient, seed),
        auc_linear=auc_of(vote(linear, pairs), pairs.patient, seed),
        by_group=by_group,
        clues=_clues(pairs, importance),
        votes=votes,
    )


def forest(seed: int) -> RandomForestClassifier:
    """Return the classifier that counts."""
    return RandomForestClassifier(_TREES, min_samples_leaf=_LEAF, random_state=seed)


def vote(model: Any, pairs: Pairs) -> Votes:
    """Predict every lesion's probability of being real, with a model that has not seen its patient."""
    probability = np.empty(2 * len(pairs.patient))
    values, is_real = _joined(pairs)
    for train, test in _parts(pairs):
        fitted = clone(model).fit(values[train], is_real[train])
        probability[test] = fitted.predict_proba(values[test])[:, 1]
    return Votes(*np.split(probability, 2))


def auc_of(votes: Votes, patient: Int[np.ndarray, "lesions"], seed: int) -> Estimate:
    """Compute the AUC with its interval by patient."""
    wins = count_wins(votes, patient)
    patients = len(wins.real)
    value = float(wins.at(np.ones((1, patients)))[0])
    interval = bound(value, len(patient), wins.at(resample_patients(patients, seed)), "share")
    return interval._replace(count=len(patient))


def compare_generators(first: Votes, second: Votes, patient: Int[np.ndarray, "lesions"], seed: int) -> Difference:
    """Subtract the second generator's AUC from the first's, on the same real lesions."""
    patients = int(patient.max()) + 1
    both = Votes(*(np.concatenate(parts) for parts in zip(first, second)))
    wins = count_wins(both, np.concatenate([patient, patient + patients]))
    return paired_difference(wins.at, resample_patients(patients, seed), swap(patients, seed), len(patient))


def halves(pairs: Pairs, seed: int) -> Pairs:
    """Make pairs of real lesions only, as a control: split each patient's lesions into two halves at random."""
    rng = np.random.default_rng(seed)
    first: list[int] = []
    second: list[int] = []
    for patient in np.unique(pairs.patient):
        shuffled = rng.permutation(np.flatnonzero(pairs.patient == patient))
        half = len(shuffled) // 2
        first += shuffled[:half].tolist()
        second += shuffled[half : 2 * half].tolist()
    _, patient_number = np.unique(pairs.patient[first], return_inverse=True)
    return Pairs(pairs.real[first], pairs.real[second], patient_number)


class Wins(NamedTuple):
    """How often a patient's real lesions beat a patient's planted ones, a tie counting half."""

    table: Float[np.ndarray, "patients patients"]  # real, planted
    real: Float[np.ndarray, "patients"]  # how many there are
    planted: Float[np.ndarray, "patients"]

    def at(self, weights: Weights) -> Values:
        """Compute the AUC with weighted patients; NaN where there is nothing to compare."""
        pairs = (weights @ self.real) * (weights @ self.planted)
        won = ((weights @ self.table) * weights).sum(1)
        return np.divide(won, pairs, out=np.full(len(weights), math.nan), where=pairs > 0)


def count_wins(votes: Votes, patient: Int[np.ndarray, "lesions"]) -> Wins:
    """Count by patient, so that patients can be drawn again without comparing lesions again."""
    ahead = np.sign(votes.real[:, None] - votes.planted[None]) / 2 + 0.5
    belongs = (patient[:, None] == np.arange(patient.max() + 1)).astype(float)
    lesions = belongs.sum(0)
    return Wins(belongs.T @ ahead @ belongs, lesions, lesions)


def _joined(pairs: Pairs) -> tuple[Table, Bool[np.ndarray, "lesions"]]:
    return np.concatenate([pairs.real, pairs.planted]), np.arange(2 * len(pairs.real)) < len(pairs.real)


def _parts(pairs: Pairs) -> list[tuple[np.ndarray, np.ndarray]]:
    groups = np.tile(pairs.patient, 2)
    parts = GroupKFold(min(_MOST_PARTS, int(pairs.patient.max()) + 1))
    return list(parts.split(groups[:, None], groups=groups))


def _vote_and_shuffle(model: Any, pairs: Pairs, seed: int) -> tuple[Votes, Float[np.ndarray, "features"]]:
    """Vote, and measure what the AUC loses if a feature is shuffled among the test lesions of each part."""
    rng = np.random.default_rng(seed)
    values, is_real = _joined(pairs)
    features = values.shape[1]
    votes = np.empty((1 + features * _SHUFFLES, len(values)))  # the first without shuffling
    for train, test in _parts(pairs):
        fitted = clone(model).fit(values[train], is_real[train])
        copies = np.repeat(values[test][None], len(votes), axis=0)
        for row in range(1, len(votes)):
            copies[row, :, (row - 1) // _SHUFFLES] = rng.permutation(values[test][:, (row - 1) // _SHUFFLES])
        votes[:, test] = fitted.predict_proba(copies.reshape(-1, features))[:, 1].reshape(len(votes), -1)
    aucs = np.array([_plain_auc(*np.split(row, 2)) for row in votes])
    return Votes(*np.split(votes[0], 2)), aucs[0] - aucs[1:].reshape(features, _SHUFFLES).mean(1)


def _plain_auc(real: Float[np.ndarray, "n"], planted: Float[np.ndarray, "m"]) -> float:
    """Compute the share of pairs in which the real lesion's value is larger."""
    ranks = stats.rankdata(np.concatenate([real, planted]))[: len(real)].sum()
    return float((ranks - len(real) * (len(real) + 1) / 2) / (len(real) * len(planted)))


def _clues(pairs: Pairs, importance: Sequence[float] | np.ndarray) -> tuple[Clue, ...]:
    groups = {name: group for group, names in FEATURE_GROUPS.items() for name in names}
    clues = [
        Clue(
            name,
            groups[name],
            importance=float(loss),
            auc=_plain_auc(real, planted),
            ks=float(stats.ks_2samp(real, planted).statistic),
            shift_sd=float(stats.wasserstein_distance(real, planted) / max(real.std(), 1e-9)),
            real_median=float(np.median(real)),
            planted_median=float(np.median(planted)),
        )
        for name, real, planted, loss in zip(FEATURES, pairs.real.T, pairs.planted.T, importance)
    ]
    return tuple(sorted(clues, key=lambda clue: -abs(clue.auc - 0.5)))
