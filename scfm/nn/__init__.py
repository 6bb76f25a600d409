"""Network blocks shared by the adapters: plain Linears that adapters (LoRA) and hooks can reach, in train and eval alike."""

from scfm.nn.attention import SelfAttention
from scfm.nn.bert import BertEmbedding, bert_keys
from scfm.nn.causal import CausalAttention, KeyValues
from scfm.nn.embeddings import NormedEmbedding, SoftBinEmbedding, ValueMLP, over_distinct, sinusoids
from scfm.nn.flow import FlowAttention
from scfm.nn.heads import CellDecoder, ExpressionDecoder, MLPClassifier
from scfm.nn.mamba import Mamba2
from scfm.nn.norms import DomainNorm
from scfm.nn.performer import PerformerAttention
from scfm.nn.sites import Site
from scfm.nn.stack import TransformerLayer, TransformerStack, torch_layer_keys

__all__ = [
    "BertEmbedding",
    "CausalAttention",
    "CellDecoder",
    "DomainNorm",
    "ExpressionDecoder",
    "FlowAttention",
    "KeyValues",
    "MLPClassifier",
    "Mamba2",
    "NormedEmbedding",
    "PerformerAttention",
    "SelfAttention",
    "Site",
    "SoftBinEmbedding",
    "TransformerLayer",
    "TransformerStack",
    "ValueMLP",
    "bert_keys",
    "over_distinct",
    "sinusoids",
    "torch_layer_keys",
]
