"""Numbers in, numbers out: one file a subject, pure functions with their formulas; compared with other implementations in the tests."""

from scfm.metrics.agreement import ami, ari, cluster_f1, nmi
from scfm.metrics.batch_effect import batch_leakage, pcr, pcr_comparison
from scfm.metrics.estimates import Estimate, bootstrap, bootstrap_mean
from scfm.metrics.graphs import graph_connectivity, knn_graph, knn_purity, neighbourhood_overlap, purities
from scfm.metrics.guards import Overmixing, negative_transfer, overmixing, random_embedding
from scfm.metrics.isolated import isolated_f1, isolated_labels, isolated_silhouette
from scfm.metrics.mixing import clisi, ilisi, ilisi_ceiling, kbet, kbet_p_values, lisi
from scfm.metrics.retrieval import foscttm, median_rank, pair_ranks, recall_at_k
from scfm.metrics.scores import Score
from scfm.metrics.silhouette import bras, silhouette_batch, silhouette_label, silhouettes
from scfm.metrics.similarity import linear_cka, overlap_by_chance, procrustes_similarity
from scfm.metrics.trajectory import diffusion_map, diffusion_pseudotime, trajectory_spearman, trajectory_tau
from scfm.metrics.transfer import knn_labels, leave_one_batch_out, leave_one_cell_out

__all__ = [
    "Estimate",
    "Overmixing",
    "Score",
    "ami",
    "ari",
    "batch_leakage",
    "bootstrap",
    "bootstrap_mean",
    "bras",
    "clisi",
    "cluster_f1",
    "diffusion_map",
    "diffusion_pseudotime",
    "foscttm",
    "graph_connectivity",
    "ilisi",
    "ilisi_ceiling",
    "isolated_f1",
    "isolated_labels",
    "isolated_silhouette",
    "kbet",
    "kbet_p_values",
    "knn_graph",
    "knn_labels",
    "knn_purity",
    "leave_one_batch_out",
    "leave_one_cell_out",
    "linear_cka",
    "lisi",
    "median_rank",
    "negative_transfer",
    "neighbourhood_overlap",
    "nmi",
    "overlap_by_chance",
    "overmixing",
    "pair_ranks",
    "pcr",
    "pcr_comparison",
    "procrustes_similarity",
    "purities",
    "random_embedding",
    "recall_at_k",
    "silhouette_batch",
    "silhouette_label",
    "silhouettes",
    "trajectory_spearman",
    "trajectory_tau",
]
