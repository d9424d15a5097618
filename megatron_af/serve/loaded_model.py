"""A trained model in this process: it answers, and where its run has an AF-CLAP stage it embeds.

    model = LoadedModel(Path("runs/demo"))        # or a stage, a checkpoint, a release; megatron_af.load does the same
    model.answer("dog.wav", "what is it?")
    model.answers([{"audio": "dog.wav", "prompt": "what is it?"}], temperature=0.7, seed=3)
    model.scores("dog.wav", "what is it?", ["a dog", "a cat"])
    model.teach("door creak", ["creak1.wav", "creak2.wav"])
    for piece in model.stream("dog.wav", "what is it?"): print(piece, end="")
    model.embed("dog.wav") @ model.embed(text="a dog barks")

N recordings or texts, J joint dim.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from dali_pipes.waves import AudioError
from megatron_af.config import ParallelConfig
from megatron_af.data.rows import Row
from megatron_af.data.templates import TooLong, UnknownWords
from megatron_af.inference.decoding import Decoding
from megatron_af.inference.requests import BadRequest, Opens, RequestRows, check_options, decoding_of, own_files
from megatron_af.inference.writing import Answer, Tell
from megatron_af.parallel.device import make_megatron_portable
from megatron_af.runs.calibration import CALIBRATION
from megatron_af.runs.digests import digest_file
from megatron_af.runs.objectives import spec_of
from megatron_af.runs.pointers import checkpoint_digest
from megatron_af.serve.found_examples import FoundExamples
from megatron_af.serve.parts import join_process_group, load_embedder, load_listener
from megatron_af.serve.pieces import pieces_of
from megatron_af.serve.places import embedding_stage, find, run_name
from megatron_af.serve.settings import PRECISIONS, Precision
from megatron_af.serve.teaching import answered_behind, check_lesson, show

if TYPE_CHECKING:
    from megatron_af.inference.answers import Answering
    from megatron_af.inference.embedder import ClapEmbedder
    from megatron_af.inference.listener import Listener
    from megatron_af.inference.live import Live
    from megatron_af.inference.session import Session
    from megatron_af.inference.taught import Taught

type Audio = str | Path | bytes
"""A recording in any format that libsndfile or FFmpeg reads: a file, a ``data:`` URI, base64, or its bytes."""

TALK = ("history", "examples")
"""What may come before a prompt."""


class LoadedModel:
    """Loads once, then answers and embeds; calls from several threads wait for each other.

    Args:
        place: folder of a run (its last stage that answers is taken), of a stage (its newest checkpoint), of one
            checkpoint, or of a release.
        opens: which files its requests may name.
        precision: ``fp32`` or ``bf16``; or ``int8``: the linears of the language model in int8, its adapters merged,
            and the rest in bf16. Default: as it was trained.
        parallel: how the model lies on the ranks of torchrun; default: whole on each.

    Raises:
        ValueError: there is no such precision, or not in that layout.
        FileNotFoundError: there is no such folder, nothing trained in it, or a file that it needs is gone.
        ConfigError: its configuration cannot be read.
    """

    def __init__(
        self,
        place: str | Path,
        *,
        opens: Opens = own_files,
        precision: Precision = "",
        parallel: ParallelConfig | None = None,
    ) -> None:
        if precision not in ("", *PRECISIONS):
            raise ValueError(f"precision: expected {', '.join(PRECISIONS)} or nothing, got {precision!r}")
        self._opens, parallel = opens, parallel or ParallelConfig()
        if precision == "int8" and parallel.tensor > 1:
            raise ValueError(
                f"precision: int8 holds each linear whole on its rank, got parallel.tensor = {parallel.tensor}; set it "
                "to 1, or precision to bf16"
            )
        self._config, checkpoint = find(Path(place))
        self._name = run_name(Path(place), self._config)
        self._weights, self._precision = checkpoint_digest(checkpoint), precision
        if precision:
            self._config = replace(self._config, precision="fp32" if precision == "fp32" else "bf16")
        self._stage = self._config.curriculum[self._config.stage]
        make_megatron_portable()
        join_process_group()
        self._lock, self._closed = threading.Lock(), False
        self._listener: Listener | None = None
        self._embedder: ClapEmbedder | None = None
        self._examples = FoundExamples(self._config, opens)
        self._together: Answering | None = None
        self._taught: Taught | None = None
        if self._stage.objective == "answer":
            self._listener = load_listener(self._config, checkpoint, parallel, in_int8=precision == "int8")
        elif spec_of(self._stage).embeds:
            self._embedder = load_embedder(self._config, checkpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def answer(
        self,
        audio: Audio | None,
        prompt: str,
        *,
        history: Sequence[Mapping[str, str]] = (),
        examples: Sequence[Mapping[str, Any]] = (),
        few_shot: int = 0,
        few_shot_from: str = "",
        **decoding: Any,
    ) -> str:
        """What the model says to a prompt about a recording (None: about nothing heard).

        Args:
            history: earlier turns about the recording, ``{"user": …, "assistant": …}``.
            examples: answered ones to show first, ``{"audio": …, "prompt": …, "answer": …}``.
            few_shot, few_shot_from: find the examples: see :meth:`answers`.
            decoding: fields of ``inference.decoding.Decoding``: ``max_new_tokens``, ``temperature``, ``beams`` …

        Raises:
            BadRequest: what was asked cannot be answered; one sentence says why.
        """
        request = {"audio": audio, "prompt": prompt, "history": history or None, "examples": examples or None}
        (answer,) = self.answers([request], few_shot=few_shot, few_shot_from=few_shot_from, **decoding)
        return answer

    def answers(
        self, requests: Sequence[Mapping[str, Any]], *, few_shot: int = 0, few_shot_from: str = "", **decoding: Any
    ) -> list[str]:
        """One answer per request (``inference/requests.py`` says what a request holds), computed together.

        What comes before a question and does not fit is left out, the oldest turn or example first.

        Args:
            few_shot: show this many examples before each question: the training rows that sound most like its audio.
            few_shot_from: data set whose index they come from; it may be left out where there is one index.
            decoding: as in :meth:`answer`; a request's own ``decoding`` goes before it.

        Raises:
            BadRequest: before any answer is computed; also for a question that does not fit alone.
            StaleIndex: the data set is not any more what was indexed.
        """
        told = self.complete(requests, few_shot=few_shot, few_shot_from=few_shot_from, **decoding)
        return [answer.text for answer in told]

    def complete(
        self,
        requests: Sequence[Mapping[str, Any]],
        *,
        few_shot: int = 0,
        few_shot_from: str = "",
        tell: Sequence[Tell | None] = (),
        **decoding: Any,
    ) -> list[Answer]:
        """:meth:`answers` with their tokens, why each ended, and what else ``decoding`` asks for.

        Args:
            tell: of each request, told its answer piece by piece; on this thread.
        """
        decodings = [decoding_of(request, decoding, f"request {i}: ") for i, request in enumerate(requests)]
        with self._rows(requests, few_shot, few_shot_from) as (listener, rows, root):
            if self._taught is None or few_shot:
                answers = listener.answers(rows, decodings, root=root, tell=tell)
            else:
                tells = tell or [None] * len(rows)
                asked = zip(rows, decodings, tells, strict=True)
                answers = [answered_behind(self._taught, listener, *one, root) for one in asked]
        return [answer for answer in answers if answer is not None]

    def teach(self, label: str, clips: Sequence[Audio], *, prompt: str = "what is this sound?") -> None:
        """Show a class once; from then on, questions about one recording are answered behind what was taught. Keys and
        values of the examples are kept: a question costs hardly more than without them.

        Requests with ``history``, ``examples`` or ``few_shot`` of their own are answered without it.

        Args:
            label: the answer to ``prompt`` for each of the clips.
            prompt: what is going to be asked; a model is good at what it was trained to be asked.

        Raises:
            BadRequest: there is no clip or it cannot be read, no label, or no room for more examples.
        """
        listener = self._answering()
        check_lesson(label, clips, self._config.model)
        from megatron_af.inference.taught import Taught

        with self._lock:
            taught = self._taught or Taught(listener)
            show(taught, label, clips, prompt, self._opens)
            self._taught = taught

    def forget(self) -> None:
        """What was taught."""
        self._taught = None

    def stream(self, audio: Audio | None, prompt: str, **how: Any) -> Iterator[str]:
        """:meth:`answer`, piece by piece as it is written; the model is free for others when it has ended."""
        request = {"audio": audio, "prompt": prompt} | {key: how.pop(key) for key in TALK if key in how}
        return pieces_of(lambda tell: self.complete([request], tell=[tell], **how))

    def scores(self, audio: Audio | None, prompt: str, options: Sequence[str], **talk: Any) -> dict[str, float]:
        """Log-probability of each option as the answer to a prompt, its end included.

        Args:
            talk: ``history`` or ``examples``, as in :meth:`answer`.

        Raises:
            BadRequest: what was asked cannot be answered, or the tokenizer cannot write an option.
        """
        check_options(options)
        request = {"audio": audio, "prompt": prompt} | talk
        with self._rows([request], 0, "") as (listener, rows, root):
            try:
                (logprobs,) = listener.scores(rows, [options], root=root)
            except UnknownWords as error:
                unknown = ", ".join(map(repr, error.words))
                raise BadRequest(f"options: the model's tokenizer has no {unknown}; ask in words it has") from None
        if logprobs is None:
            raise BadRequest("options: one is too long behind this prompt for the positions that the model has learnt")
        return dict(zip(options, logprobs, strict=True))

    @contextmanager
    def _rows(
        self, requests: Sequence[Mapping[str, Any]], few_shot: int, few_shot_from: str
    ) -> Iterator[tuple["Listener", list[Row], Path]]:
        """The requests as rows that fit, with the folder of their recordings, while nobody else uses the model."""
        listener = self._answering()
        with self._lock, RequestRows(self._opens) as files:
            if few_shot:
                requests = self._examples.before(requests, few_shot, few_shot_from)
            rows = [files.row(request, f"request {index}") for index, request in enumerate(requests)]
            for row in rows:
                self.prompt_tokens(row)
            try:
                yield listener, rows, files.root
            except AudioError as error:
                raise BadRequest(str(error)) from None

    def join(self, rows: Sequence[Row], decodings: Sequence[Decoding], root: Path, tell: Sequence[Tell]) -> None:
        """Rows whose clips lie below ``root``, each of which passed :meth:`prompt_tokens`, are answered together with
        those that joined before and go on; :meth:`step` by step.

        Raises:
            BadRequest: a recording cannot be decoded.
        """
        listener = self._answering()
        if self._together is None:
            from megatron_af.inference.answers import Answering

            self._together = Answering(listener.tokenizer)
        with self._lock:
            try:
                listener.join(self._together, rows, decodings, root=root, tell=tell)
            except AudioError as error:
                raise BadRequest(str(error)) from None

    def step(self) -> int:
        """One more token of each row that joined; how many go on."""
        assert self._together is not None
        with self._lock:
            self._together.step()
        return self._together.rows

    def abandon(self) -> None:
        """Those who joined get no more."""
        self._together = None

    def prompt_tokens(self, row: Row) -> int:
        """How long the text is that the model reads before it answers; other threads need not wait for it.

        Raises:
            BadRequest: the question does not fit, even without what comes before it.
        """
        try:
            return len(self._answering().prompt(row).segments[-1])
        except TooLong as error:
            raise BadRequest(
                f"{row.id}: expected a question that takes at most {error.max_tokens} tokens, got one of "
                f"{error.tokens}; shorten it"
            ) from None

    def session(self) -> "Session":
        """A conversation about one recording, which is heard once (``inference/session.py``); on this thread alone."""
        from megatron_af.inference.session import Session

        return Session(self._answering(), self._opens)

    def live(self) -> "Live":
        """A recording that goes on while it is asked about (``inference/live.py``); on this thread alone.

        Raises:
            BadRequest: the model was not trained for it (``model.transform.sees = past``).
        """
        from megatron_af.inference.live import Live

        return Live(self._answering())

    def basis(self, *, few_shot: int, few_shot_from: str) -> dict[str, str]:
        """What answers follow from besides what is asked, each by a digest or a name; what there is none of is left
        out. Raises BadRequest where the rows to show are of no index."""
        calibration = self._config.stage_folder(self._config.stage) / CALIBRATION
        found = {
            "weights": self._weights,
            "precision": self._precision,
            "calibration": digest_file(calibration) if self._answering().calibration else "",
            "index": self._examples.digest(few_shot_from) if few_shot else "",
        }
        return {name: digest for name, digest in found.items() if digest}

    @property
    def data_rank(self) -> int:
        """Which share of the work is this rank's."""
        return self._answering().groups.data_rank

    @property
    def data_size(self) -> int:
        return self._answering().groups.data_size

    @property
    def name(self) -> str:
        """Of the run."""
        return self._name

    def embed(
        self, audio: Audio | Sequence[Audio] | None = None, *, text: str | Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        """Recordings, or texts, as unit vectors of one space: the scalar product says how well two fit.

        Returns:
            float32 [J] of one recording or text, [N, J] of several.

        Raises:
            BadRequest: nothing or both are given, audio cannot be read, or the run has no AF-CLAP stage.
        """
        self._check_open()
        if (audio is None) == (text is None):
            raise BadRequest(f"embed: expected audio or text, got {'neither' if text is None else 'both'}")
        given: Any = text if audio is None else audio
        one = isinstance(given, str | Path | bytes)
        items = [given] if one else list(given)
        with self._lock:
            if self._embedder is None:
                self._embedder = load_embedder(*embedding_stage(self._config))
            if audio is None:
                vectors = self._embedder.texts(items)
            else:
                with RequestRows(self._opens) as files:
                    rows = [files.recording(item, f"audio {index}") for index, item in enumerate(items)]
                    try:
                        vectors = self._embedder.audio(rows, root=files.root)
                    except AudioError as error:
                        raise BadRequest(str(error)) from None
        vector_NJ: NDArray[np.float32] = vectors.numpy()
        return vector_NJ[0] if one else vector_NJ

    def close(self) -> None:
        """Ends the model's threads; its memory goes with the last reference to it."""
        for part in (self._listener, self._embedder, self._examples):
            if part is not None:
                part.close()
        self._listener = self._embedder = None
        self._taught = None
        self._closed = True

    def _answering(self) -> "Listener":
        self._check_open()
        if self._listener is None:
            raise BadRequest(
                f"stage {self._config.stage} of {self._config.name} gives no answers, its objective is "
                f"{self._stage.objective}; load a stage that answers, or embed with this one"
            )
        return self._listener

    def _check_open(self) -> None:
        if self._closed:
            raise BadRequest(f"{self._config.name} was closed; load it again")
