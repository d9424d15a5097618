"""Recordings of a class as examples that stand before later questions: what is refused, in one sentence.

    check_lesson("door creak", ["creak1.wav"], config.model)
    show(taught, "door creak", ["creak1.wav"], "what is this sound?")
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dali_pipes.waves import AudioError
from megatron_af.config import ModelConfig
from megatron_af.data.rows import Question, Row
from megatron_af.data.templates import TooLong
from megatron_af.inference.requests import BadRequest, Opens, RequestRows, own_files

if TYPE_CHECKING:
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
