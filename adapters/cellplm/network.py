"""CellPLM's network: a set of cells, each the sum of its genes' vectors, attends to itself; then a latent, a decoder, a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scfm.encoder import Encoded, Network, Recovery, Request
from scfm.nn import FlowAttention, PerformerAttention, TransformerLayer, TransformerStack
from scfm.tokenizers import Batch

NORM_GROUPS = 4  # of every GroupNorm
MIXTURE_HIDDEN = 512  # width inside the mixture's posterior, fixed in the original
OUT_HIDDEN = 128  # width before the genes in the decoder, fixed in the original
PERFORMER_HEAD = 64  # width of a Performer head, whatever the model's


@dataclass(frozen=True)
class CellPLMConfig:
    """Sizes and parts, as found in `<name>.config.json` and the tensors."""

    genes: int
    hidden: int = 1024  # of the encoder: width of a cell's state
    layers: int = 4
    heads: int = 8
    attention: Literal["flowformer", "performer"] = "flowformer"
    norm: Literal["groupnorm", "layernorm"] = "groupnorm"  # in embedder and decoder
    latent: Literal["gmvae", "vae", "ae"] = "gmvae"
    dim: int = 512  # of the latent: length of a cell embedding
    clusters: int = 16  # of the mixture (gmvae)
    decoder_hidden: int = 0  # 0: no decoder
    decoder_layers: int = 2
    batches: int = 0  # rows of the decoder's covariate tables
    datasets: int = 0
    platforms: int = 0
    classifier: tuple[int, ...] = ()  # output width of each layer of the annotation head
    dropout: float = 0.2


def _norm(kind: str, dim: int) -> nn.Module:
    return nn.GroupNorm(NORM_GROUPS, dim) if kind == "groupnorm" else nn.LayerNorm(dim)


def _layer(c: CellPLMConfig) -> TransformerLayer:
    attention: nn.Module = FlowAttention(c.hidden, c.heads)
    if c.attention == "performer":
        attention = PerformerAttention(c.hidden, c.heads, head_dim=PERFORMER_HEAD)
    layer = TransformerLayer(
        c.hidden, c.heads, 2 * c.hidden, activation="gelu", norm="pre", dropout=c.dropout, attention=attention
    )
    if c.attention == "performer":
        layer.norm1, layer.norm2 = (nn.RMSNorm(c.hidden, eps=1e-6) for _ in range(2))  # type: ignore[assignment]
    return layer


class PlainLatent(nn.Module):
    """Autoencoder: one Linear; fine-tuned checkpoints."""

    outputs: tuple[str, ...] = ()
    """What `parts` gives."""

    def __init__(self, c: CellPLMConfig) -> None:
        super().__init__()
        self.mean = nn.Linear(c.hidden, c.dim)

    def forward(self, x: Tensor, uniform: Tensor | None = None) -> Tensor:
        """States (n, hidden) -> embedding (n, dim)."""
        return self.mean(x)

    def parts(self, x: Tensor, uniform: Tensor | None = None) -> dict[str, Tensor]:
        """Everything else the latent says of the cells, by name."""
        return {}


class GaussianLatent(PlainLatent):
    """VAE: the embedding is the posterior's mean."""

    outputs = ("variance",)

    def __init__(self, c: CellPLMConfig) -> None:
        super().__init__(c)
        self.log_variance = nn.Linear(c.hidden, c.dim)

    def parts(self, x: Tensor, uniform: Tensor | None = None) -> dict[str, Tensor]:
        """Variance of the posterior (n, dim)."""
        return {"variance": self.log_variance(x).clamp(-5, 5).exp() + 1e-4}


class MixtureLatent(nn.Module):
    """Gaussian-mixture VAE: a cluster y of the cell, then the mean of q(z | x, y).

    The original draws y in evaluation too (arg-max of logits + Gumbel noise). Here it is the likeliest cluster, unless the uniform draws
    behind the noise are given.
    """

    outputs = ("cluster_logits", "cluster_probabilities", "cluster", "variance", "prior_mean", "prior_variance")

    def __init__(self, c: CellPLMConfig) -> None:
        super().__init__()
        self.logits = nn.Linear(c.hidden, c.clusters)
        self.hidden = nn.Linear(c.hidden + c.clusters, MIXTURE_HIDDEN)
        self.mean = nn.Linear(MIXTURE_HIDDEN, c.dim)
        self.variance = nn.Linear(MIXTURE_HIDDEN, c.dim)
        self.prior_mean = nn.Linear(c.clusters, c.dim)
        self.prior_variance = nn.Linear(c.clusters, c.dim)

    def forward(self, x: Tensor, uniform: Tensor | None = None) -> Tensor:
        """States (n, hidden), draws (n, clusters) in [0, 1) or None -> embedding (n, dim)."""
        return self.mean(self._given(x, self._cluster(self.logits(x), uniform)))

    def parts(self, x: Tensor, uniform: Tensor | None = None) -> dict[str, Tensor]:
        """Clusters, and the variances and prior that follow from them."""
        logits = self.logits(x)
        y = self._cluster(logits, uniform)
        return {
            "cluster_logits": logits,
            "cluster_probabilities": logits.softmax(dim=-1),
            "cluster": y,  # one-hot
            "variance": F.softplus(self.variance(self._given(x, y))),
            "prior_mean": self.prior_mean(y),
            "prior_variance": F.softplus(self.prior_variance(y)),
        }

    @staticmethod
    def _cluster(logits: Tensor, uniform: Tensor | None) -> Tensor:
        if uniform is not None:
            logits = logits - torch.log(-torch.log(uniform + 1e-20) + 1e-20)  # Gumbel noise
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)

    def _given(self, x: Tensor, y: Tensor) -> Tensor:
        """relu(W [x; y]) (n, 512)."""
        return F.relu(self.hidden(torch.cat([x, y], dim=-1)))


LATENTS: dict[str, type[PlainLatent] | type[MixtureLatent]] = {
    "gmvae": MixtureLatent,
    "vae": GaussianLatent,
    "ae": PlainLatent,
}


class DecoderLayer(nn.Module):
    """norm(PReLU(W x)), plus norm(PReLU(.)) of every covariate.

    No covariate of the cell is known at inference: as in the original, the sum of all rows of its table stands for it.
    """

    def __init__(self, c: CellPLMConfig, inputs: int) -> None:
        super().__init__()
        d = c.decoder_hidden
        self.linear, self.act, self.norm = nn.Linear(inputs, d), nn.PReLU(), _norm(c.norm, d)
        sizes = {"batch": c.batches, "dataset": c.datasets, "platform": c.platforms}
        self.tables = nn.ModuleDict({name: nn.Embedding(size, d) for name, size in sizes.items() if size})
        self.acts = nn.ModuleDict({name: nn.PReLU() for name in self.tables})
        self.norms = nn.ModuleDict({name: _norm(c.norm, d) for name in self.tables})

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs) -> (n, decoder_hidden)."""
        x = self.norm(self.act(self.linear(x)))
        for name in self.tables:
            total = self.tables.get_parameter(f"{name}.weight").detach().sum(dim=0, keepdim=True)  # (1, decoder_hidden)
            x = x + self.norms[name](self.acts[name](total))
        return x


class CountDecoder(nn.Module):
    """Mean of a negative binomial for every gene; its dispersion is clamp(exp(log_dispersion), 1e-4, 1e4)."""

    def __init__(self, c: CellPLMConfig) -> None:
        super().__init__()
        widths = [c.dim] + [c.decoder_hidden] * (c.decoder_layers - 1)
        self.layers = nn.ModuleList(DecoderLayer(c, width) for width in widths[:-1])
        self.hidden = nn.Linear(widths[-1], OUT_HIDDEN)
        self.mean = nn.Linear(OUT_HIDDEN, c.genes)
        self.log_dispersion = nn.Parameter(torch.zeros(c.genes))

    def forward(self, z: Tensor) -> Tensor:
        """Latent (n, dim) -> mean (n, genes)."""
        for layer in self.layers:
            z = layer(z)
        return self.mean(F.relu(self.hidden(z))).exp().clamp(1e-5, 1e6)


def _classifier(c: CellPLMConfig) -> nn.Sequential | None:
    """Dropout, Linear; then ReLU, Dropout, Linear for every further layer."""
    modules: list[nn.Module] = []
    for inputs, outputs in zip((c.dim, *c.classifier), c.classifier, strict=False):
        modules += [*([nn.ReLU()] if modules else []), nn.Dropout(c.dropout), nn.Linear(inputs, outputs)]
    return nn.Sequential(*modules) if modules else None


class CellPLMNetwork(Network):
    """One batch is one set of cells: all of them attend to each other."""

    token_embedding = "embed_norm"
    recovery = Recovery("expression", "gene", counts=True)

    def __init__(self, config: CellPLMConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        self.dim, self.depth = c.dim, c.layers
        self.genes = nn.EmbeddingBag(c.genes, c.hidden, mode="sum")
        self.embed = nn.Linear(c.hidden, c.hidden)
        self.embed_norm = _norm(c.norm, c.hidden)
        self.layers = TransformerStack(_layer(c) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.hidden)
        self.latent = LATENTS[c.latent](c)
        self.decoder = CountDecoder(c) if c.decoder_hidden else None
        self.classifier = _classifier(c)

    @property
    def heads(self) -> frozenset[str]:  # type: ignore[override]
        """State of the cells before and after the last norm, what the latent says of them, expression, classes."""
        names = {"state", "normed_state", *self.latent.outputs}
        if self.decoder is not None:
            names.add("expression")
        if self.classifier is not None:
            names.add("logits")
        return frozenset(names)

    @property
    def token_width(self) -> int:
        """Length of a token's state."""
        return self.config.hidden

    def embed_cells(self, batch: Batch) -> Tensor:
        """Input states of the cells (n, hidden): norm(relu(W Σ value · gene + b))."""
        ids, values = batch["ids"], batch["values"]
        if batch.pad is not None:
            values = values.masked_fill(batch.pad, 0)
        if ids.shape[1] == 0:  # no cell expresses a known gene
            total = self.embed.weight.new_zeros(len(ids), self.config.hidden)
        else:
            total = self.genes(ids, per_sample_weights=values)  # (n, hidden), never (n, genes, hidden)
        return self.embed_norm(F.relu(self.embed(total)))

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """What `request` asks for. Tokens are what each gene adds to its cell's input (n, t, hidden)."""
        out = Encoded()
        if request.wants("tokens"):
            one = batch["ids"].reshape(-1, 1)  # a bag of one gene
            added = self.genes(one, per_sample_weights=batch["values"].reshape(-1, 1))
            out.tokens = added.unflatten(0, batch["ids"].shape)
        if request.outputs <= {"tokens"}:
            return out
        states = self.layers.run(self.embed_cells(batch)[None], layers=request.hidden_layer).states[0]  # (n, hidden)
        x = self.norm(states)
        found = {"state": states, "normed_state": x}
        drawn = batch.cells.get("uniform")
        if request.wants(*self.latent.outputs):
            found |= self.latent.parts(x, drawn)
        if request.wants("cells", "expression", "logits"):
            out.cells = self.latent(x, drawn)
        if self.decoder is not None and request.wants("expression"):
            found["expression"] = self.decoder(out.cells)
        if self.classifier is not None and request.wants("logits"):
            found["logits"] = self.classifier(out.cells)
        out.heads = {name: value for name, value in found.items() if request.wants(name)}
        return out
