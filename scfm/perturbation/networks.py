"""The small networks among the baselines: latent additive (PerturBench) and SimpleAffine (Wong et al.), trained on pseudobulk in seconds.

Both are trained on the CPU on all training profiles at once, so that nothing but the initial weights is random; these come from a seed of
their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.errors import InputError
from scfm.perturbation.baselines import mean_response
from scfm.perturbation.conditions import Key, genes_of, one_hot, sums_of_genes
from scfm.perturbation.pseudobulk import Profiles

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["latent_additive", "simple_affine"]


def latent_additive(
    train: Profiles,
    keys: Sequence[Key],
    *,
    perturbed: Mapping[str, np.ndarray] | None = None,
    width: int = 128,
    latent: int = 32,
    steps: int = 300,
    rate: float = 1e-3,
    seed: int = 0,
) -> np.ndarray:
    """decode(encode(control) + embed(perturbation)), the latent additive model of PerturBench (Wu et al. 2024, arXiv:2408.10609).

    Parameters
    ----------
    train, keys
        As all baselines.
    perturbed
        Gene -> (d,) embedding of the perturbed genes; None: one-hot vectors of those in training. A condition is the sum of its genes'.
    width, latent
        Hidden units of the three MLPs, and the dimension in which control and perturbation are added.
    steps, rate
        Of Adam, each on all profiles; the rate falls to 0 in a line.
    seed
        Of the initial weights.

    Returns
    -------
    np.ndarray
        (n_keys, n_genes) log profiles, above 0. A gene without embedding adds nothing to a pair; a condition without any embedded gene is
        predicted as the mean response.

    Raises
    ------
    InputError
        There are no training perturbations, or none has an embedded gene.

    Notes
    -----
    From the authors' code: MLPs of two hidden layers, each with LayerNorm without weights and ReLU, for the control's expression, for the
    perturbation and for the way back; softplus at the end; mean squared error. Ours: they train on single cells, each beside a control cell
    of its covariates, this on pseudobulk; the controls are training profiles too (no perturbation, nothing added but what embed(0) is); the
    last bias starts at the mean profile; sizes are their defaults, and nothing was tuned.
    """
    import torch
    from torch.nn import functional as F

    reference = mean_response(train, keys)
    table = one_hot(train.perturbed, train.control) if perturbed is None else perturbed
    asked = sums_of_genes([condition for _, condition in keys], table, train.control)
    given = sums_of_genes([condition for _, condition in train.keys], table, train.control)
    known = np.isfinite(given).all(axis=1)
    if not known.any():
        raise InputError(
            "no perturbed gene of the training data has an embedding.", "Pass perturbed= with rows for these genes."
        )
    fitted = known | np.array([condition == train.control for _, condition in train.keys])
    target = torch.tensor(train.values[fitted], dtype=torch.float32)  # (rows, genes)
    control = torch.tensor(train.control_of(train.keys)[fitted], dtype=torch.float32)
    perturbation = torch.tensor(np.nan_to_num(given[fitted]), dtype=torch.float32)  # (rows, d); controls are 0
    n_genes = len(train.genes)
    with _alone(seed):
        encoder, embedding = _mlp(n_genes, width, latent), _mlp(perturbation.shape[1], width, latent)
        decoder = _mlp(latent, width, n_genes)
        mean = target.mean(dim=0).clamp(min=1e-3)
        _start(decoder, mean + torch.log(-torch.expm1(-mean)))  # softplus of it is the mean profile

        def predicted(control: Tensor, perturbation: Tensor) -> Tensor:
            return F.softplus(decoder(encoder(control) + embedding(perturbation)))

        _train([encoder, embedding, decoder], lambda: F.mse_loss(predicted(control, perturbation), target), steps, rate)
        with torch.no_grad():
            out = predicted(
                torch.tensor(train.control_of(keys), dtype=torch.float32),
                torch.tensor(np.nan_to_num(asked), dtype=torch.float32),
            )
    return np.where(np.isfinite(asked).all(axis=1, keepdims=True), out.numpy().astype(np.float64), reference)


def simple_affine(
    train: Profiles, keys: Sequence[Key], *, dim: int = 64, steps: int = 300, rate: float = 3e-3, seed: int = 0
) -> np.ndarray:
    """scale(h) * control + shift(h) of every gene, h = gene + value + flag: scGPT's generator without its transformer (Wong et al.).

    Parameters
    ----------
    train, keys
        As all baselines.
    dim
        Of the embeddings and hidden layers.
    steps, rate
        Of Adam, each on all profiles; the rate falls to 0 in a line.
    seed
        Of the initial weights.

    Returns
    -------
    np.ndarray
        (n_keys, n_genes) log profiles. A perturbed gene that is not among the genes that are read changes nothing.

    Raises
    ------
    InputError
        There are no training perturbations, or none is of a gene that is read: the flag can't be learnt.

    Notes
    -----
    From the authors' code (github.com/pfizer-opensource/perturb_seq at 06a2917, of Wong, Hill and Moccia, "Simple controls exceed best
    deep learning predictions"): h sums a gene's embedding, an MLP of its value in the control, and the embedding of a flag that says
    whether this gene is perturbed; two MLPs make a scale and a shift of it. Without attention no gene knows of the perturbation of
    another: what is learnt is one response of all genes, and what perturbing does to the perturbed gene itself, like a CRISPR-informed
    mean whose factor is learnt. So the profiles of a context have the same inputs, but at the perturbed genes, and are fitted as their
    mean: the gradients are those of all. Ours: pseudobulk, where they train on single cells; 64 dimensions for 512; scale and shift
    start near 1 and 0; embeddings are learnt from these data only.
    """
    import torch
    from torch import nn

    mean_response(train, keys)  # refuses what has no perturbations
    gene, value, flag, target, weight = (torch.from_numpy(part) for part in _distinct_responses(train))
    share = weight / weight.sum()
    everything = torch.arange(len(train.genes))
    out = np.empty((len(keys), len(train.genes)))
    with _alone(seed):
        genes = nn.Sequential(nn.Embedding(len(train.genes), dim), nn.LayerNorm(dim))
        values = nn.Sequential(nn.Linear(1, dim), nn.ReLU(), nn.Linear(dim, dim), nn.LayerNorm(dim))
        flags = nn.Embedding(2, dim)
        scale, shift = _decoder(dim, start=1), _decoder(dim, start=0)

        def predicted(gene: Tensor, value: Tensor, flag: Tensor) -> Tensor:
            h = genes(gene) + values(value.unsqueeze(-1)) + flags(flag)  # (tokens, dim)
            return scale(h).squeeze(-1) * value + shift(h).squeeze(-1)

        def loss() -> Tensor:
            return (share * (predicted(gene, value, flag) - target) ** 2).sum()

        _train([genes, values, flags, scale, shift], loss, steps, rate)
        with torch.no_grad():
            for row, (_, condition), control in zip(out, keys, train.control_of(keys), strict=True):
                own = torch.from_numpy(np.isin(train.genes, genes_of(condition, train.control)).astype(np.int64))
                row[:] = predicted(everything, torch.tensor(control, dtype=torch.float32), own).numpy()
    return out


def _distinct_responses(train: Profiles) -> tuple[Any, ...]:
    """Gene, control value, flag, mean response and number of profiles of everything that SimpleAffine can tell apart: (tokens,) each."""
    known = train.perturbed
    contexts = np.array([context for context, _ in known], dtype=object)
    own = np.stack([np.isin(train.genes, genes_of(condition, train.control)) for _, condition in known])
    if not own.any():
        raise InputError(
            "no perturbed gene of the training data is among its genes.", "Keep the perturbed genes in the data."
        )
    values, controls = train.values[train.rows(known)], train.control_of(known)
    parts = []
    for context in dict.fromkeys(contexts):
        here = contexts == context
        for flag, member in ((0, ~own[here]), (1, own[here])):
            count = member.sum(axis=0)
            gene = np.flatnonzero(count)
            target = (values[here] * member).sum(axis=0)[gene] / count[gene]
            parts.append((gene, controls[here][0, gene], np.full(len(gene), flag), target, count[gene]))
    gene, value, flags, target, count = (np.concatenate(column) for column in zip(*parts, strict=True))
    return gene, value.astype(np.float32), flags, target.astype(np.float32), count.astype(np.float32)


def _mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    from torch import nn

    layers: list[nn.Module] = []
    for size in (inputs, width):
        layers += [nn.Linear(size, width), nn.LayerNorm(width, elementwise_affine=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def _decoder(dim: int, start: float) -> nn.Sequential:
    """scGPT's expression decoder, (tokens, dim) -> (tokens, 1); `start` before training."""
    import torch
    from torch import nn

    layers = nn.Sequential(nn.Linear(dim, dim), nn.LeakyReLU(), nn.Linear(dim, dim), nn.LeakyReLU(), nn.Linear(dim, 1))
    _start(layers, torch.full((1,), float(start)))
    return layers


def _start(layers: nn.Sequential, values: Tensor) -> None:
    """Let the last bias start at these values (n_outputs,)."""
    import torch
    from torch import nn

    last = layers[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias.copy_(values)


@contextmanager
def _alone(seed: int) -> Iterator[None]:
    """Weights of this seed, and one thread; torch's global stream and threads are afterwards as before.

    One thread: the numbers are then the same on any number of cores, and the matrices are too small for more to be faster.
    """
    import torch

    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _train(parts: Sequence[nn.Module], loss: Callable[[], Tensor], steps: int, rate: float) -> None:
    """Minimise with Adam; the rate falls to 0, so that the last step does not decide."""
    import torch

    optimizer = torch.optim.Adam([parameter for part in parts for parameter in part.parameters()], lr=rate)
    with torch.enable_grad():
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
