"""Learnt positions: to each token the vector of its place is added, as in OPT.

    positions = LearntPositions(config.model.lm.max_positions + 2, 2, transformer_config)
    embedded_SBH = embedded_SBH + positions(segment_positions(segment_BS).t())

Places are counted in each segment of a packed row anew. Shapes: S text positions, B rows, H hidden.
"""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn


class LearntPositions(nn.Embedding):
    """
    Args:
        rows: of the table, those in front of place 0 included.
        offset: row of place 0.
    """

    def __init__(self, rows: int, offset: int, config: TransformerConfig) -> None:
        super().__init__(rows, config.hidden_size, dtype=config.params_dtype)
        self.offset = offset
        # Under sequence parallelism every rank looks up its part of the positions: gradients are partial sums, and
        # this flag makes megatron-core add them up.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def check(self, position_BS: Tensor) -> None:
        """Raises ValueError where a place has no row."""
        longest, most = int(position_BS.max()) + 1, self.num_embeddings - self.offset
        if longest > most:
            raise ValueError(
                f"a text of {longest} tokens: the language model has learnt {most} positions (model.lm.max_positions); "
                "ask for shorter answers, or ask less"
            )

    def forward(self, position_SB: Tensor) -> Tensor:
        """[S, B, H] of places from 0 on."""
        return super().forward(position_SB + self.offset)


def segment_positions(segment_BS: Tensor) -> Tensor:
    """Place of each token in its own segment, int64 [B, S]; 0 at padding."""
    index_S = torch.arange(segment_BS.shape[1], device=segment_BS.device)
    begins_BS = torch.ones_like(segment_BS, dtype=torch.bool)
    begins_BS[:, 1:] = segment_BS[:, 1:] != segment_BS[:, :-1]
    begin_BS = torch.where(begins_BS, index_S, 0).cummax(1).values
    return (index_S - begin_BS).masked_fill(segment_BS < 0, 0)
