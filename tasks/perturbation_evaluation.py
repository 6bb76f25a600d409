"""Predicted responses against measured ones: any predictor, all baselines and the replicates of the experiment in one table."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scfm.errors import InputError, listing
from scfm.options import Json, Plot, Quiet, Result, Seed, load_encoder, read_adata, show
from scfm.results import TaskResult, provenance_of
from scfm.task import Task

if TYPE_CHECKING:
    from os import PathLike

    import numpy as np
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

    from scfm.encoder import CellEncoder
    from scfm.perturbation import Key, PerturbationSplit, Profiles, ResponsePredictor
    from scfm.perturbation.measured import Measured

HEADLINE = ("pds_cosine", "expression_error", "direction_fidelity", "jaccard", "r2_delta", "pearson_calibrated")
"""Scores that the summary and the picture show."""
ALL = "all"


@dataclass(frozen=True)
class PerturbationEvaluation(TaskResult):
    """Scores of predictors.

    Parameters
    ----------
    table
        Long: stratum ("all", or a subgroup of the split), predictor, metric, value, low, high, scaled, scaled_low, scaled_high, n, better.
        `scaled` is 0 for the mean of the training perturbations and 1 for the replicates (the predictor "replicate").
    conditions
        Every score of every test condition: predictor, context, condition, metric, value.
    split
        What was trained on and tested.
    skipped
        Baselines that these data do not allow, and why; predicted log values below 0 that were taken as 0.
    """

    conditions: pd.DataFrame
    split: Mapping[str, Any]
    skipped: Mapping[str, str]

    def wide(self, column: str = "value", stratum: str = ALL) -> pd.DataFrame:
        """Predictors x metrics of one column of the table."""
        part = self.table[self.table.stratum == stratum]
        return part.pivot(index="predictor", columns="metric", values=column)[list(dict.fromkeys(part.metric))].loc[
            list(dict.fromkeys(part.predictor))
        ]

    def summary(self) -> str:
        """The headline scores of all predictors, and which baseline is ahead."""
        values, scale = self.wide()[list(HEADLINE)], self.wide("scaled")[list(HEADLINE)]
        cells = values.map(lambda v: f"{v:.3f}") + scale.map(lambda s: "" if s != s else f" ({s:+.2f})")
        n = self.table.n.max()
        lines = [
            f"{n} test conditions; in brackets 0 is the mean of the training perturbations, 1 the replicates",
            cells.to_string(),
            *(f"{name}: {why}" for name, why in self.skipped.items()),
        ]
        return "\n".join(lines)

    def plot(self, *, ax: Axes | None = None, save: str | PathLike[str] | None = None) -> Axes:
        """Scaled headline scores of every predictor, with intervals over conditions; values outside -1 .. 1.2 are drawn at the edge."""
        import numpy as np

        from scfm.plotting import CATEGORIES, MARKERS, axes_of, saved

        part = self.table[(self.table.stratum == ALL) & (self.table.predictor != "replicate")]
        names = list(dict.fromkeys(part.predictor))
        ax = axes_of(ax, size=(7.5, 1.2 + 0.55 * len(names)))
        shown = [m for m in HEADLINE if part.loc[part.metric == m, "scaled"].notna().any()]
        for i, metric in enumerate(shown):
            rows = part[part.metric == metric].set_index("predictor").loc[names]
            at = np.arange(len(names))[::-1] + 0.7 * (0.5 - (i + 0.5) / len(shown))
            low, value, high = (rows[c].clip(-1, 1.2) for c in ("scaled_low", "scaled", "scaled_high"))
            ax.hlines(at, low, high, color=CATEGORIES[i], linewidth=1.2, alpha=0.8)
            ax.plot(value, at, MARKERS[i], color=CATEGORIES[i], markersize=5, label=metric)
        ax.set_yticks(np.arange(len(names))[::-1], names)
        for x, style in ((0, "-"), (1, "--")):
            ax.axvline(x, color="#333333", linewidth=0.8, linestyle=style, zorder=0)
        ax.set_xlim(-1.08, 1.28)
        ax.set_xlabel("0: mean of training perturbations, 1: replicates")
        ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        return saved(ax, save)


def evaluate_perturbation(
    data: AnnData,
    split: PerturbationSplit,
    predictions: Sequence[ResponsePredictor | AnnData] = (),
    *,
    embeddings: Sequence[CellEncoder] = (),
    condition: str = "condition",
    context: str | None = None,
    layer: str | None = None,
    effect: str | None = None,
    networks: bool = True,
    target_sum: float = 5e4,
    alpha: float = 0.05,
    halves: int = 5,
    resamples: int = 1000,
    seed: int = 0,
) -> PerturbationEvaluation:
    """Score predicted responses against measured cells, beside every baseline.

    Parameters
    ----------
    data
        Raw counts of all conditions of the split; not changed.
    split
        Training and test conditions, and the name of the control. Validation conditions are not used.
    predictions
        Predictors, asked for the test conditions, or AnnData as `scfm.perturbation.response` makes them.
    embeddings
        Encoders whose gene embeddings stand for the perturbed genes in the bilinear baseline: what a frozen model adds to it.
    condition, context
        Columns of `obs`: the perturbation, and the cell line or donor (None: one).
    layer
        Matrix with the counts: None for `X`, or a key of `layers`.
    effect
        "interference" or "activation": adds the CRISPR-informed mean.
    networks
        Also train the two small networks among the baselines, latent additive and SimpleAffine: seconds, or a minute with many genes and
        conditions.
    target_sum
        Counts a profile is scaled to. Above a tenth of what a condition's cells have together, the log of rare genes is noise; a warning
        says so.
    alpha
        False discovery rate at which genes are significant.
    halves
        Times the cells of each condition are halved for the replicates.
    resamples
        Bootstrap samples of test conditions.
    seed
        Of the halves, the bootstrap, and the cells that stand for predicted means.

    Returns
    -------
    PerturbationEvaluation

    Raises
    ------
    InputError
        The split's conditions are not in the data, a prediction lacks some, or a test condition has fewer than four cells.
    """
    from scfm.perturbation.evaluation import held_out, replicate_scores, score
    from scfm.perturbation.measured import measured_cells, predicted_cells

    measured = measured_cells(
        data, condition=condition, control=split.control, context=context, layer=layer, target_sum=target_sum
    )
    if unknown := sorted({*split.train, *split.test} - {name for _, name in measured.rows}):
        raise InputError(
            f"{listing(unknown)} of the split is no condition of the data.", "Was the split drawn from these data?"
        )
    test, trained = held_out(measured, split.test), held_out(measured, split.train)
    train = measured.select(trained).profiles
    _look_at_depth(measured, test)
    control = data[data.obs[condition].astype(str) == split.control].copy()
    if layer is not None:
        control.X = control.layers[layer]
    names = sorted({name for _, name in test})
    made, skipped = _baselines(train, control, names, context, effect, networks, embeddings)
    for given in predictions:
        response = given.predict_response(control, names) if hasattr(given, "predict_response") else given
        made.append(response)
    reference = _reference(train, test)
    scored = {}
    for response in made:
        predicted = predicted_cells(response, measured, test, context=context, seed=seed)
        if predicted.name in scored:
            raise InputError(f"two predictions are called {predicted.name!r}.", "Give them different names.")
        if predicted.clipped and predicted.name not in skipped:
            skipped[predicted.name] = f"{predicted.clipped:,} predicted log values below 0 were taken as 0"
        scored[predicted.name] = score(measured, predicted, test, reference, alpha=alpha)
    replicates = replicate_scores(measured, test, reference, splits=halves, seed=seed)
    settings = dict(
        condition=condition, context=context, layer=layer, effect=effect, target_sum=target_sum, alpha=alpha
    )
    settings |= dict(networks=networks, halves=halves, resamples=resamples, seed=seed, n_cells=len(measured.keys))
    return PerturbationEvaluation(
        _strata(scored, replicates, split, resamples, seed),
        _long(scored),
        {name: getattr(split, name) for name in ("train", "valid", "test", "subgroups", "control", "settings")},
        skipped,
        provenance=provenance_of("evaluate_perturbation", *embeddings, **settings),
    )


def _look_at_depth(measured: Measured, test: Sequence[Key]) -> None:
    """Warn where profiles are scaled to more counts than there are."""
    import numpy as np

    from scfm.reading import InputWarning

    depth = float(np.median([measured.cells(key).sum() for key in test]))
    if measured.target_sum > depth / 10:
        warnings.warn(
            f"a condition's cells have {depth:,.0f} counts together (median); scaled to {measured.target_sum:,.0f}, the log of rare genes "
            f"is noise. Pass target_sum={10 ** int(np.log10(max(depth, 100)) - 1):g} or less.",
            InputWarning,
            stacklevel=3,
        )


def _baselines(
    train: Profiles,
    control: AnnData,
    names: list[str],
    context: str | None,
    effect: str | None,
    networks: bool,
    encoders: Sequence[CellEncoder],
) -> tuple[list[AnnData], dict[str, str]]:
    """Responses of all baselines, and why some can't be had."""
    from scfm.perturbation import Baseline, bilinear_response
    from scfm.perturbation.evaluation import standard_baselines

    chosen = standard_baselines(train, context=context, effect=effect, networks=networks)  # type: ignore[arg-type]
    for encoder in encoders:
        name = f"bilinear, {encoder.name} genes"
        table = gene_table(encoder, [*train.perturbed, *(("", name) for name in names)], train.control)
        predict: Callable[[Profiles, Sequence[Key]], np.ndarray] = partial(bilinear_response, perturbed=table)
        chosen[name] = Baseline(name, train, predict, context)
    made, skipped = [], {}
    for name, baseline in chosen.items():
        try:
            made.append(baseline.predict_response(control, names))
        except InputError as error:
            if name in ("mean", "no change"):
                raise
            skipped[name] = f"left out: {error.found}"
    return made, skipped


def gene_table(encoder: CellEncoder, keys: Sequence[Key], control: str) -> dict[str, np.ndarray]:
    """The encoder's embeddings of the perturbed genes that it knows, centred and of unit mean square."""
    import numpy as np

    from scfm.genes import gene_ids
    from scfm.perturbation import panel_genes

    genes = panel_genes({condition for _, condition in keys}, control)
    ids = gene_ids(encoder.vocabulary, genes)
    known = {gene: encoder.vocabulary.tokens[i] for gene, i in zip(genes, ids, strict=True) if i >= 0}
    if not known:
        return {}
    vectors = encoder.gene_embeddings(list(known.values())).to_numpy(dtype=np.float64)
    vectors -= encoder.gene_embeddings().to_numpy(dtype=np.float64).mean(axis=0)
    vectors /= np.sqrt((vectors**2).mean())
    return dict(zip(known, vectors, strict=True))


def _reference(train: Profiles, keys: Sequence[Key]) -> np.ndarray:
    from scfm.perturbation import mean_response

    return mean_response(train, keys)


def _strata(
    scored: Mapping[str, pd.DataFrame],
    replicates: Sequence[pd.DataFrame],
    split: PerturbationSplit,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """The table of all test conditions, and of each subgroup of the split."""
    import pandas as pd

    from scfm.perturbation.evaluation import table_of

    tables = [table_of(scored, replicates, resamples=resamples, seed=seed).assign(stratum=ALL)]
    for name, members in split.subgroups.items():
        if 0 < len(members) < len(split.test):
            parts = {n: t[t.index.isin(members, level="condition")] for n, t in scored.items()}
            halves = [t[t.index.isin(members, level="condition")] for t in replicates]
            tables.append(table_of(parts, halves, resamples=resamples, seed=seed).assign(stratum=name))
    whole = pd.concat(tables, ignore_index=True)
    return whole[["stratum", *whole.columns.drop("stratum")]]


def _long(scored: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    from scfm.perturbation.evaluation import SCORES

    parts = [
        table[list(SCORES)].reset_index().melt(["context", "condition"], var_name="metric").assign(predictor=name)
        for name, table in scored.items()
    ]
    return pd.concat(parts, ignore_index=True)[["predictor", "context", "condition", "metric", "value"]]


def command(
    data: Annotated[Path, typer.Argument(help="An .h5ad file or .zarr folder with raw counts of all conditions.")],
    predictions: Annotated[
        list[Path] | None, typer.Option("--prediction", "-p", help="A predicted response (.h5ad); repeatable.")
    ] = None,
    split: Annotated[Path | None, typer.Option(help="A stored split (.json). Default: one is drawn.")] = None,
    save_split: Annotated[Path | None, typer.Option(help="Store the split that was used.")] = None,
    kind: Annotated[str, typer.Option(help="Of a drawn split: simulation or simulation_single.")] = "simulation",
    split_seed: Annotated[int, typer.Option(help="Of a drawn split.")] = 1,
    control: Annotated[str, typer.Option(help="Name of the control.")] = "ctrl",
    condition: Annotated[str, typer.Option(help="Column of obs with the conditions.")] = "condition",
    context: Annotated[str | None, typer.Option(help="Column of obs with the cell lines or donors.")] = None,
    layer: Annotated[str | None, typer.Option(help="Key of layers with the counts. Default: X.")] = None,
    effect: Annotated[
        str | None, typer.Option(help="interference or activation: adds the CRISPR-informed mean.")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--predictor", help="A model that predicts responses, as for `scfm embed`; repeatable."),
    ] = None,
    embeddings: Annotated[
        list[str] | None,
        typer.Option("--embeddings", help="A model whose gene embeddings the bilinear baseline uses; repeatable."),
    ] = None,
    networks: Annotated[bool, typer.Option(help="Also train latent additive and SimpleAffine, two baselines.")] = True,
    target_sum: Annotated[float, typer.Option(help="Counts a profile is scaled to.")] = 5e4,
    seed: Seed = 0,
    out: Result = None,
    plot: Plot = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score predicted responses to perturbations beside every baseline."""
    from scfm.perturbation import PerturbationSplit, simulation_split

    adata = read_adata(data)
    if condition not in adata.obs:
        raise InputError(
            f"obs of {data} has no column {condition!r} (columns: {listing(map(str, adata.obs))}).", "Pass --condition."
        )
    names = sorted(set(adata.obs[condition].astype(str)))
    chosen = (
        PerturbationSplit.from_json(split)
        if split
        else simulation_split(names, control=control, kind=kind, seed=split_seed)  # type: ignore[arg-type]
    )
    if save_split:
        chosen.to_json(save_split)
    result = evaluate_perturbation(
        adata,
        chosen,
        [*(read_adata(path) for path in predictions or ()), *(_predictor(model, control) for model in models or ())],
        embeddings=[load_encoder(model) for model in embeddings or ()],
        condition=condition,
        context=context,
        layer=layer,
        effect=effect,
        networks=networks,
        target_sum=target_sum,
        seed=seed,
    )
    show(result, out=out, plot=plot, as_json=as_json, quiet=quiet)


def _predictor(model: str, control: str) -> Any:
    """A model that predicts responses: fine-tuned to, or one whose network generates expression."""
    from scfm.in_silico import ExpressionGenerator
    from scfm.perturbation import ResponsePredictor

    encoder = load_encoder(model)
    return encoder if isinstance(encoder, ResponsePredictor) else ExpressionGenerator(encoder, control)


TASK = Task("evaluate_perturbation", run=evaluate_perturbation, command=command, needs=frozenset())
