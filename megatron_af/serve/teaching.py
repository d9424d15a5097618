"""Recordings of a class as examples that stand before later questions: what is refused, in one sentence.

    check_lesson("door creak", ["creak1.wav"], config.model)
    show(taught, "door creak", ["creak1.wav"], "what is this sound?")
    answered_behind(taught, listener, row, decoding, None, root)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dali_pipes.waves import AudioError
from megatron_af.config import ModelConfig
from megatron_af.data.rows import Question, Row
from megatron_af.data.templates import TooLong
from megatron_af.inference.decoding import Decoding
from megatron_af.inference.requests import BadRequest, Opens, RequestRows, own_files
from megatron_af.inference.writing import Answer, Tell

if TYPE_CHECKING:
    from megatron_af.inference.listener import Listener
    from megatron_af.inference.taught import Taught


def check_lesson(label: str, clips: Sequence[str | Path | bytes], model: ModelConfig) -> None:
    """Raises ``BadRequest`` where there is no clip or no label, or the model can keep nothing."""
    if isinstance(clips, str | Path | bytes) or not clips:
        got = "none" if not isinstance(clips, str | Path | bytes) else "one: put it into a list"
        raise BadRequest(f"teach: {label!r}: expected recordings of it, got {got}")
    if not label.strip():
        raise BadRequest("teach: expected a label, got none")
    if model.transform.sees == "row":
        raise BadRequest("teach: under model.transform.sees = row audio changes what is before it: nothing is kept")


def show(
    taught: "Taught", label: str, clips: Sequence[str | Path | bytes], prompt: str, opens: Opens = own_files
) -> None:
    """Add a clip each as an example whose answer is the label; all or none.

    Raises:
        BadRequest: a clip cannot be read, or there is no room for more examples.
    """
    pair = Question(prompt=prompt, output=label)
    with RequestRows(opens) as files:
        heard = [files.recording(clip, f"teach: {label!r}: clip {n}").clips[0] for n, clip in enumerate(clips)]
        examples = Row(id=label, clips=tuple(heard), questions=(pair,) * len(heard), template="interleaved")
        try:
            taught.add(examples, files.root)
        except AudioError as error:
            raise BadRequest(f"teach: {label!r}: {error}") from None
        except TooLong as error:
            raise BadRequest(
                f"teach: {label!r}: {len(taught) + len(heard)} examples take more than the {error.max_tokens} "
                "tokens of the stage's max_text_tokens; teach fewer clips, or forget() what was taught"
            ) from None


def answered_behind(
    taught: "Taught", listener: "Listener", row: Row, decoding: Decoding, tell: Tell | None, root: Path
) -> Answer | None:
    """The answer behind what was taught, where a row can stand behind it.

    Raises:
        BadRequest: together they are too long.
    """
    if row.template != "single" or len(row.clips) != 1:
        return listener.answers([row], [decoding], root=root, tell=[tell])[0]
    try:
        return taught.answer(row, decoding, root, tell)
    except TooLong as error:
        raise BadRequest(
            f"{row.id}: expected a question that fits into {error.max_tokens} tokens behind the {len(taught)} examples "
            "that were taught; shorten it, or forget() them"
        ) from None
