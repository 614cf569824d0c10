"""Settings of each command."""

from ..data.loading import DataArguments, SourceArguments
from ..data.preparation import PreparationArguments
from ..data.streaming.stream import StreamingArguments
from ..evaluation.embedding import EncoderArguments
from ..evaluation.embedding_shards import EmbeddingArguments
from ..evaluation.settings import ClassificationArguments, OnlineProbeArguments, ProbingArguments
from ..hub.publishing import HubArguments
from ..training.arguments import KamimArguments, PretrainingArguments

PRETRAINING_ARGUMENTS = (DataArguments, KamimArguments, StreamingArguments, OnlineProbeArguments, PretrainingArguments)
CLASSIFICATION_ARGUMENTS = (DataArguments, ClassificationArguments, ProbingArguments)
PREPARATION_ARGUMENTS = (SourceArguments, PreparationArguments, HubArguments)
ENCODING_ARGUMENTS = (SourceArguments, EncoderArguments)
EMBEDDING_ARGUMENTS = (SourceArguments, EmbeddingArguments, HubArguments)
COMMAND_ARGUMENTS: dict[str, tuple[type, ...]] = {
    "pretrain": PRETRAINING_ARGUMENTS,
    "evaluate": CLASSIFICATION_ARGUMENTS,
    "prepare": PREPARATION_ARGUMENTS,
}
