"""Numbers in, numbers out: one file a subject, pure functions with their formulas; compared with other implementations in the tests."""

from scfm.metrics.estimates import Estimate, bootstrap, bootstrap_mean
from scfm.metrics.retrieval import foscttm, median_rank, pair_ranks, recall_at_k
from scfm.metrics.transfer import knn_labels

__all__ = [
    "Estimate",
    "bootstrap",
    "bootstrap_mean",
    "foscttm",
    "knn_labels",
    "median_rank",
    "pair_ranks",
    "recall_at_k",
]
