"""What is planned, and what follows from it."""

from megatron_af.plan.case import Case
from megatron_af.plan.gpu import read_gpu
from tests import tiny


def case(**parallel: object) -> Case:
    return Case(config=tiny.config(**parallel), gpu=read_gpu("cpu"), world=8)  # type: ignore[arg-type]


def test_ranks_share_a_step() -> None:
    found = case(tensor=2, pipeline=2)
    assert (found.model_ranks, found.copies, found.per_copy, found.element) == (4, 2, 4, 4)


def test_chunks_of_a_pipeline_stage_lie_apart() -> None:
    stages = case(pipeline=2, virtual_pipeline=2).stages
    assert [[list(chunk.layers) for chunk in chunks] for chunks in stages] == [[[0], [2]], [[1], [3]]]


def test_a_tied_table_lies_on_both_ends() -> None:
    first, last = (case(pipeline=2).decoder(stage) for stage in range(2))
    table = "lm.embedding.word_embeddings.weight"
    assert first[table] == last[table] and "lm.decoder.final_layernorm.weight" in last
