"""Texts and recordings as the model reads them.

    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(text="<audio>what is heard?<SEP>", audio="dog.wav")
    content = [{"type": "audio", "audio": "dog.wav"}, {"type": "text", "text": "what is heard?"}]
    chat = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)

The chat template writes the words that the model was trained on: one question; answered questions about recordings of
their own, as examples; or a dialogue. What users write there stays text, even where it looks like a special token.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin

AUDIO = "<audio>"
UNSPECIAL = "\ue000"
"""Stands inside what only looks like a special token; it is taken out when the text is encoded."""


class AudioFlamingoInputs(BatchFeature):
    """A batch whose decibels stay float32 where it is given another type: bfloat16 would round them to half of one."""

    def to(self, *args: Any, **kwargs: Any) -> "AudioFlamingoInputs":
        features = self.get("input_features")
        super().to(*args, **kwargs)
        if features is not None:
            self["input_features"] = features.to(self["input_ids"].device)
        return self


class AudioFlamingoProcessor(ProcessorMixin):
    def __init__(self, feature_extractor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)

    def __call__(
        self,
        text: str | list[str],
        audio: Any = None,
        sampling_rate: int | None = None,
        **kwargs: Any,
    ) -> AudioFlamingoInputs:
        """A batch: ``input_ids`` and ``attention_mask`` [B, S], padded at the left; and where anything is heard
        ``input_features`` [B, W, F, M] and ``window_audio`` [B, W], -1 where a row has no more windows.

        Args:
            text: with a mark ``<audio>`` for each recording.
            audio: files or waveforms, in the order of the marks; one, a list, or lists in lists.
            sampling_rate: Hz of the waveforms.

        Raises:
            ValueError: the marks and the recordings are not as many.
        """
        texts = [text] if isinstance(text, str) else list(text)
        recordings = [] if audio is None else list(_flat(audio))
        marks = [part.count(AUDIO) for part in texts]
        if sum(marks) != len(recordings):
            raise ValueError(f"expected a recording for each {AUDIO} in text, got {len(recordings)} for {sum(marks)}")
        encoded = [{"input_ids": self._encode(part)} for part in texts]
        batch = dict(self.tokenizer.pad(encoded, padding=True, padding_side="left", return_tensors="pt"))
        if recordings:
            waiting = iter(recordings)
            batch |= self._heard([[next(waiting) for _ in range(count)] for count in marks], sampling_rate)
        return AudioFlamingoInputs(batch)

    def _heard(self, rows: list[list[Any]], sampling_rate: int | None) -> dict[str, torch.Tensor]:
        features = [self.feature_extractor(row, sampling_rate) if row else None for row in rows]
        most = max(found["window_audio"].shape[1] for found in features if found is not None)
        frames_bins = next(found["input_features"].shape[2:] for found in features if found is not None)
        input_features = torch.zeros(len(rows), most, *frames_bins)
        window_audio = torch.full((len(rows), most), -1)
        for row, found in enumerate(features):
            if found is not None:
                windows = found["window_audio"].shape[1]
                input_features[row, :windows] = found["input_features"][0]
                window_audio[row, :windows] = found["window_audio"][0]
        return {"input_features": input_features, "window_audio": window_audio}

    def _encode(self, text: str) -> list[int]:
        """Special tokens become their ids; what lies between them is text, whatever else it holds."""
        ids: list[int] = []
        for part in re.split(f"({self._special_tokens})", text):
            if re.fullmatch(self._special_tokens, part):
                ids.append(self.tokenizer.convert_tokens_to_ids(part))
            elif part:
                plain = part.replace(UNSPECIAL, "")
                ids += self.tokenizer.encode(plain, add_special_tokens=False, split_special_tokens=True)
        return ids

    @property
    def _special_tokens(self) -> str:
        """Pattern of those that the templates write."""
        return "|".join(re.escape(token) for token in self.tokenizer.all_special_tokens)

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Messages as text; with ``tokenize`` as ids, and with ``return_dict`` as a whole batch.

        Args:
            conversation: messages of ``user`` and ``assistant``, or a list of such lists. A content is text, or a list
                of ``{"type": "text", "text": …}`` and ``{"type": "audio", "audio": file or waveform}``.
            processor_kwargs: of :meth:`__call__`.
        """
        batched = bool(conversation) and isinstance(conversation[0], list | tuple)
        given = conversation if batched else [conversation]
        conversations = [[self._plain(message) for message in messages] for messages in given]
        written = super().apply_chat_template(conversations, chat_template, tokenize=False, **kwargs)
        text = written if batched else written[0]
        if not tokenize:
            return text
        audio = [
            next(part[key] for key in ("audio", "path", "url") if key in part)
            for messages in conversations
            for message in messages
            for part in message["content"]
            if part["type"] == "audio"
        ]
        batch = self(text=text, audio=audio or None, **processor_kwargs or {})
        return batch if return_dict else batch["input_ids"]

    def _plain(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message as a list of parts, in whose text nothing is a special token, however it is written."""
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        return message | {
            "content": [
                part | {"text": re.sub(self._special_tokens, _broken, part["text"], flags=re.IGNORECASE)}
                if part["type"] == "text"
                else part
                for part in parts
            ]
        }

    def post_process_image_text_to_text(self, generated_outputs: Any, **kwargs: Any) -> list[str]:
        kwargs.setdefault("skip_special_tokens", True)
        return [text.strip() for text in self.tokenizer.batch_decode(generated_outputs, **kwargs)]


def _broken(found: re.Match[str]) -> str:
    return found[0][0] + UNSPECIAL + found[0][1:]


def _flat(audio: Any) -> Iterator[Any]:
    """Recordings of any nesting; a waveform is an array, or a list of numbers."""
    if isinstance(audio, list | tuple) and not (audio and isinstance(audio[0], int | float)):
        for part in audio:
            yield from _flat(part)
    else:
        yield audio
