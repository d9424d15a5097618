"""The language model that hears: megatron-core's decoder with gated cross-attention to audio tokens.

    lm = AudioLM(config, lm_config, first_added_id=151_665, added_tokens=4, pre_process=True, post_process=True)
    losses_T = lm(rows, audio, added_rows_NH)          # one per supervised token; hidden states before the last stage

The model holds one pipeline stage. What a position may hear comes with the call; no layer keeps state of it.

Shapes: S text positions, B rows, H hidden, L audio tokens, D audio width, N added tokens, T supervised positions,
V vocabulary.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_af.config import Config
from megatron_af.data.batch import AudioKeys, TextRows
from megatron_af.decoder.added_tokens import OutputTable, TokenTable, replace_added
from megatron_af.decoder.attention import spec_provider
from megatron_af.decoder.cache import DecoderCache
from megatron_af.decoder.cross_attention import AudioDecoderLayer
from megatron_af.decoder.family import family_of
from megatron_af.decoder.initialization import fresh, initialize
from megatron_af.decoder.layer_spec import decoder_spec
from megatron_af.decoder.lora import add_adapters
from megatron_af.decoder.positions import LearntPositions, segment_positions
from megatron_af.decoder.stretches import Sight
from megatron_af.parallel.device import current_device
from megatron_af.parallel.global_state import TABLES, placements
from megatron_af.parallel.transfer import there

# It announces that new features go to HybridModel, at every construction.
logging.getLogger("megatron.core.models.gpt.gpt_model").setLevel(logging.ERROR)


class AudioLM(GPTModel):
    """One pipeline stage (or virtual stage) of the decoder.

    Args:
        first_added_id: id of the first token added behind the tokenizer's own vocabulary.
        added_tokens: their number; their rows come with each call.
        pre_process: this stage embeds the tokens.
        post_process: this stage computes logits and losses.
        vp_stage: which chunk of an interleaved schedule, None without one.
        drawn: whether the weight of a canonical name gets a first value; by default all do.
    """

    def __init__(
        self,
        config: Config,
        transformer_config: TransformerConfig,
        *,
        first_added_id: int,
        added_tokens: int,
        pre_process: bool,
        post_process: bool,
        vp_stage: int | None = None,
        drawn: Callable[[str], bool] = lambda name: True,
    ) -> None:
        lm, family = config.model.lm, family_of(config.model.lm)
        tensor_group = parallel_state.get_tensor_model_parallel_group()
        table = TokenTable.of(
            lm,
            first_added_id,
            added_tokens,
            tensor_size=tensor_group.size(),
            tensor_rank=tensor_group.rank(),
        )
        super().__init__(
            config=transformer_config,
            transformer_layer_spec=decoder_spec(
                config.model, transformer_config, spec_provider(transformer_config), vp_stage
            ),
            vocab_size=table.padded_rows,
            max_sequence_length=lm.max_positions,
            pre_process=pre_process,
            post_process=post_process,
            share_embeddings_and_output_weights=lm.tied,
            vp_stage=vp_stage,
            **family.model_settings(),
        )
        self.table = table
        if post_process:
            OutputTable.take_over(self.output_layer)
        self.places = None if family.position_offset is None else lm.max_positions
        """Most tokens of a text, where positions are learnt; on every pipeline stage."""
        self.position_embeddings: LearntPositions | None = None
        if pre_process and family.position_offset is not None:
            self.position_embeddings = LearntPositions(family.position_rows, family.position_offset, transformer_config)
        self.lora = config.lora
        if self.lora:
            add_adapters(self, self.lora)
        self._family, self._seed = family, config.seed
        initialize(self, family, config.seed, drawn)

    def draw_words(self, first: int) -> None:
        """Give the words from id ``first`` on the rows of a fresh model."""
        for placement, parameter in placements(self):
            if placement.name in TABLES:
                own_VH = placement.take(fresh(placement, self._family, self._seed))
                begin = self.table.local(first)
                parameter.detach()[begin : len(own_VH)] = own_VH[begin:].to(parameter)

    def skip_identity_blocks(self) -> int:
        """Leave out gated blocks that are frozen with closed gates, as in a stage that trains the language model
        alone. Call it when weights are loaded and what trains is chosen; returns how many are left out."""
        layers = (layer for layer in self.decoder.layers if isinstance(layer, AudioDecoderLayer))
        return sum(layer.xattn.skip_if_identity() for layer in layers)

    def compile_layers(self) -> None:
        """From now on run each layer as ``torch.compile`` makes it: once for all layers of a kind and all lengths.
        Attention stays outside, and answers are decoded without (:meth:`extend`)."""
        for layer in self.decoder.layers:
            layer.compile(dynamic=True)

    def forward(
        self, rows: TextRows, audio: AudioKeys, added_rows_NH: Tensor, *, sight: Sight | None = None
    ) -> Tensor:
        """Losses of the supervised positions.

        Args:
            rows: a micro-batch, on the host.
            audio: what its rows hear.
            added_rows_NH: rows of the added tokens; their gradient is partial on each rank of the
                model-parallel group.
            sight: ``Sight.of(rows, audio.audio_of_BL)``, where it is known already.

        Returns:
            On the last stage float32 [T], in row-major order of the positions whose label is supervised;
            elsewhere the hidden states [S, B, H].
        """
        return self._decode(rows, audio, added_rows_NH, self._losses, sight)

    def logits(
        self, rows: TextRows, audio: AudioKeys, added_rows_NH: Tensor, *, position_B: Tensor | None = None
    ) -> Tensor:
        """Float32 logits [B, S, V] of every position on the last stage (V = table rows and added tokens, on
        every tensor-parallel rank); elsewhere the hidden states [S, B, H].

        Args:
            position_B: one position of each row; the output layer runs on these alone and gives [B, V].
        """
        return self._decode(rows, audio, added_rows_NH, partial(self._logits, position_B=position_B))

    def extend(
        self, rows: TextRows, added_rows_NH: Tensor, cache: DecoderCache, *, position_B: Tensor | None = None
    ) -> Tensor:
        """:meth:`logits` of more text of each row, behind what ``cache`` holds of it; the cache then holds these, too.

        Args:
            rows: the new tokens, right padded; what they see of the audio is numbered as in the whole text.
        """
        dtype, device = self.config.params_dtype, current_device().torch
        added_rows_NH = added_rows_NH.to(dtype)
        text, audio = cache.begin(rows, dtype, device)
        rotary_SB1D = None
        if self.position_embedding_type == "rope":
            rotary_SB1D = self.rotary_pos_emb(cache.room)[text.place_BS.t(), 0]
        place_BS = text.place_BS.masked_fill((rows.segment_BS < 0).to(device), 0)  # padding may lie beyond the table
        with _rows_at_places_of_their_own(self.config), torch.compiler.set_stance("force_eager"):
            hidden_SBH = self.decoder(
                hidden_states=self._embed(rows.ids_BS, place_BS, added_rows_NH) if self.pre_process else None,
                attention_mask=text,
                rotary_pos_emb=rotary_SB1D,
                context=audio,
                context_mask=None,
            )
        if not self.post_process:
            return cast(Tensor, hidden_SBH)
        return self._logits(hidden_states=hidden_SBH, context=(rows, added_rows_NH), position_B=position_B)

    def _decode(
        self,
        rows: TextRows,
        audio: AudioKeys,
        added_rows_NH: Tensor,
        head: Callable[..., Tensor],
        sight: Sight | None = None,
    ) -> Tensor:
        dtype = self.config.params_dtype
        added_rows_NH = added_rows_NH.to(dtype)
        audio_LBD = audio.tokens_LBD.view_as(audio.tokens_LBD)  # so that the copy lasts no longer than the graph
        if audio_LBD.dtype != dtype:
            audio_LBD.rounded_copy = audio_LBD.detach().to(dtype)  # type: ignore[attr-defined]
        output: Tensor = super().forward(
            input_ids=None,
            position_ids=None,
            attention_mask=None,
            decoder_input=(
                self._embed(rows.ids_BS, segment_positions(rows.segment_BS), added_rows_NH)
                if self.pre_process
                else None
            ),
            packed_seq_params=sight or Sight.of(rows, audio.audio_of_BL),
            extra_block_kwargs={"context": audio_LBD},
            output_processor=head,
            output_processor_context=(rows, added_rows_NH),
        )
        return output

    def _embed(self, ids_BS: Tensor, position_BS: Tensor, added_rows_NH: Tensor) -> Tensor:
        """[S, B, H], or this rank's part of S under sequence parallelism.

        Args:
            position_BS: place of each token in its segment, from 0 on; read where positions are learnt. On the host
                it saves a synchronisation.

        Raises:
            ValueError: a text has more tokens than there are learnt positions.
        """
        ids_BS = there(ids_BS, current_device().torch)
        own_ids_BS = ids_BS.masked_fill(self.table.is_added(ids_BS), 0)  # an added id may lie beyond the table
        embedded_SBH = self.embedding(input_ids=own_ids_BS, position_ids=None)
        ids_SB = self._own_part(ids_BS.t())
        if self.table.tensor_rank and not self.config.sequence_parallel:
            # Every tensor rank computes the same here: one of them gives the rows their gradient.
            added_rows_NH = added_rows_NH.detach()
        embedded_SBH = replace_added(self.table, ids_SB, embedded_SBH, added_rows_NH)
        if self.position_embeddings is not None:
            self.position_embeddings.check(position_BS)
            embedded_SBH = embedded_SBH + self.position_embeddings(self._own_part(position_BS.to(ids_BS.device).t()))
        embedded_SBH = embedded_SBH.contiguous()  # the ids are a transposed view; what leaves a stage lies in order
        if self.config.recompute_granularity == "full" and torch.is_grad_enabled():
            # A checkpointed layer passes gradients to its weights only if one of its inputs asks for them.
            embedded_SBH.requires_grad_()
        return embedded_SBH

    def _own_part(self, x_SB: Tensor) -> Tensor:
        """The positions of this rank: a part under sequence parallelism, else all."""
        return x_SB.chunk(self.table.tensor_size)[self.table.tensor_rank] if self.config.sequence_parallel else x_SB

    def _losses(self, *, hidden_states: Tensor, context: tuple[TextRows, Tensor], **_: Any) -> Tensor:
        rows, added_rows_NH = context
        position_T, label_T = (there(x_T, hidden_states.device) for x_T in rows.supervised)
        hidden_TH = self._tensor_region(hidden_states, position_T)
        logits_TV = self._table_logits(hidden_TH, added_rows_NH)
        losses_T: Tensor = tensor_parallel.vocab_parallel_cross_entropy(logits_TV, label_T, tp_group=self.tp_group)
        return losses_T

    def _logits(
        self, *, hidden_states: Tensor, context: tuple[TextRows, Tensor], position_B: Tensor | None, **_: Any
    ) -> Tensor:
        rows, added_rows_NH = context
        batch = rows.ids_BS.shape[0]
        position_T = None if position_B is None else position_B * batch + torch.arange(batch, device=position_B.device)
        hidden_TH = self._tensor_region(
            hidden_states, None if position_T is None else position_T.to(hidden_states.device)
        )
        logits_TV = self._table_logits(hidden_TH, added_rows_NH)
        logits_TV = tensor_parallel.gather_from_tensor_model_parallel_region(logits_TV, group=self.tp_group)
        logits_TV = logits_TV[:, : self.table.num_tokens].float()
        return logits_TV if position_T is not None else logits_TV.unflatten(0, (-1, batch)).transpose(0, 1)

    def _tensor_region(self, hidden_SBH: Tensor, position_T: Tensor | None = None) -> Tensor:
        """Hidden states [T, H] of some positions (None: all) where each tensor-parallel rank uses its part of
        the vocabulary; the backward pass sums the ranks' gradients."""
        if self.config.sequence_parallel:
            hidden_SBH = tensor_parallel.gather_from_sequence_parallel_region(hidden_SBH, group=self.tp_group)
        hidden_TH = hidden_SBH.flatten(0, 1)
        if position_T is not None:
            hidden_TH = hidden_TH.index_select(0, position_T)
        if not self.config.sequence_parallel:
            hidden_TH = tensor_parallel.copy_to_tensor_model_parallel_region(hidden_TH, group=self.tp_group)
        return hidden_TH

    def _table_logits(self, hidden_TH: Tensor, added_rows_NH: Tensor) -> Tensor:
        """Of this rank's vocabulary rows, [T, V]."""
        shared = self.pre_process and self.share_embeddings_and_output_weights
        weight_VH = self.embedding.word_embeddings.weight if shared else None
        logits_TV: Tensor = self.output_layer(hidden_TH, self.table, added_rows_NH, weight_VH)
        return logits_TV


@contextmanager
def _rows_at_places_of_their_own(config: TransformerConfig) -> Iterator[None]:
    """Transformer Engine's fused rotary positions know one place for all rows of a position; meanwhile without them."""
    fused, config.apply_rope_fusion = config.apply_rope_fusion, False
    try:
        yield
    finally:
        config.apply_rope_fusion = fused
