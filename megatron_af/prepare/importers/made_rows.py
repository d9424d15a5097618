"""Rows of captions and of labels, whatever layout they come from."""

from megatron_af.config import ImportConfig
from megatron_af.data.rows import Clip, Question, Row

CAPTION_PROMPT = "describe the sound in a sentence."
LABEL_PROMPT = "classify this sound."
EMOTIONS = {
    "anger": "angry",
    "disgust": "disgusted",
    "fear": "fearful",
    "joy": "happy",
    "sadness": "sad",
    "surprise": "surprised",
}
"""Nouns that AF1 turns into adjectives in emotion tasks."""


def options_prompt(prompt: str, labels: list[str]) -> str:
    """A classification prompt with its options as AF1 writes them: sorted, each with a full stop; yes before no."""
    if set(labels) == {"yes", "no"}:
        return prompt + "\nOPTIONS:\nyes.\nno."
    return prompt + "\nOPTIONS:\n - " + ".\n - ".join(sorted(labels)) + "."


def captioned(key: str, clip: Clip, captions: list[str], origin: ImportConfig) -> Row:
    prompt = origin.prompt or CAPTION_PROMPT
    questions = tuple(Question(prompt=prompt, output=caption) for caption in captions)
    task = origin.task or "audio captioning"
    return Row(id=key, clips=(clip,), questions=questions, captions=tuple(captions), task=task)


def labelled(key: str, clip: Clip, label: str, labels: list[str], prompt: str, task: str) -> Row:
    asked = options_prompt(prompt or LABEL_PROMPT, labels)
    question = Question(prompt=asked, output=label, options=tuple(labels))
    return Row(id=key, clips=(clip,), questions=(question,), task=task or "event classification")


def label_words(text: str, task: str) -> str:
    """A label as it is said: small letters, spaces, AF1's adjectives of emotions."""
    label = text.replace("_", " ").strip().lower()
    return EMOTIONS.get(label, label) if "emotion" in task.lower() else label
