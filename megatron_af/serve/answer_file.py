"""A file of requests, answered: shared among the ranks, and gone on with where a run before was ended.

    counts = answer_file(model, Path("asked.jsonl"), Path("answers.jsonl"), {"max_new_tokens": 32})

A line of the file is a request of ``inference/requests.py``, with an ``id`` if one likes, and with ``options`` where
the likelihood of given answers is wanted, too. A line of the output stands for each, in the same order::

    {"id": "17", "prompt": "what is it?", "answer": "a dog", "finish": "stop", "tokens": 2, "confidence": 0.9, …}
    {"id": "18", "prompt": "…", "answer": "yes", "scores": {"yes": -0.2, "no": -1.9}, "likeliest": "yes", …}
    {"id": "19", "error": "request 19: audio: expected a recording, got what cannot be decoded: …", "asked": …}

``asked`` says of what the answer follows: the request, the size and time of the recordings that it names, the settings,
and the model (``LoadedModel.basis``). What has the same one is not asked again, whoever answered it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import batched
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_af import files
from megatron_af.data.rows import is_unicode
from megatron_af.foreign import HEAD_BYTES, ForeignError, is_json_list, parse_line, read_text
from megatron_af.inference.requests import BadRequest, named_file
from megatron_af.inference.writing import Answer
from megatron_af.parallel.collectives import from_first
from megatron_af.progress import Progress
from megatron_af.runs.digests import digest_value
from megatron_af.serve.loaded_model import LoadedModel

TOGETHER = 16
"""Requests that are answered in one batch."""
READERS = 16
"""Files that are looked at at the same time."""


@dataclass(frozen=True)
class Counts:
    answered: int
    refused: int
    kept: int
    """Of an earlier run."""


def answer_file(
    model: LoadedModel,
    source: Path,
    output: Path,
    decoding: Mapping[str, Any],
    *,
    few_shot: int = 0,
    few_shot_from: str = "",
    progress: Progress,
) -> Counts:
    """A collective. Every rank writes a part of its own while it answers; the first puts them together at the end.

    Raises:
        ForeignError: no line of the file is a request.
        BadRequest: the output is a file of something else, which would be lost.
    """
    requests = list(read_requests(source))
    if requests and all(isinstance(request, Unread) for request in requests):
        raise ForeignError(requests[0]["error"])
    shown = {"few_shot": few_shot, "few_shot_from": few_shot_from}
    # A volume may show each machine another folder.
    asked, to_do = from_first(partial(_to_do, model, requests, {"decoding": dict(decoding), **shown}, source, output))
    own = to_do[model.data_rank :: model.data_size]
    done = 0
    with _part(output, dist.get_rank()).open("a", encoding="utf-8") as part:
        part.write("\n")  # behind a line that an earlier run broke off in
        for places in batched(own, TOGETHER):
            some = [requests[place] for place in places]
            found = _answered(model, some, decoding, few_shot, few_shot_from)
            for place, result in zip(places, found, strict=True):
                line = _head(requests[place], place) | result | {"asked": asked[place]}
                part.write(json.dumps(line, ensure_ascii=False) + "\n")
            part.flush()
            done += len(places)
            progress.update("requests", done, len(own))
    dist.barrier()
    if dist.get_rank() == 0:
        known = _known(output, dist.get_world_size())
        heads = [_head(request, place) for place, request in enumerate(requests)]
        lines = [head | known[digest] | head for head, digest in zip(heads, asked, strict=True)]
        files.write(output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        for rest in output.parent.glob(f"{output.name}.part-*"):
            rest.unlink()
    dist.barrier()
    refused = sum("error" in line for line in map(json.loads, read_text(output).split("\n")[:-1]))
    return Counts(answered=len(requests) - refused, refused=refused, kept=len(requests) - len(to_do))


class Unread(dict[str, Any]):
    """A line that is no request: what is wrong with it stands under ``error``."""


def read_requests(source: Path) -> Iterator[dict[str, Any]]:
    """The requests of a JSON Lines file; a line that holds none is `Unread`. Raises `ForeignError`."""
    text = read_text(source)
    if is_json_list(text[:HEAD_BYTES].encode()):
        raise ForeignError(f"{source} is a JSON list: write a line for each request, for instance by jq -c '.[]'")
    for number, line in enumerate(text.split("\n"), 1):  # U+2028 ends no line of JSON
        if not line.strip():
            continue
        where = f"{source}, line {number}: "
        try:
            request = parse_line(line.encode())
        except ForeignError as error:
            yield Unread(error=where + str(error))
            continue
        if not isinstance(request, dict):
            yield Unread(error=f"{where}expected an object with prompt and audio, got {line[:60]}")
        elif not is_unicode(request):
            yield Unread(error=f"{where}half of a surrogate pair, which is no text: correct or remove it")
        else:
            yield request


def _head(request: Mapping[str, Any], place: int) -> dict[str, Any]:
    name = request.get("id")
    return {"id": str(place) if name is None else name, "prompt": request.get("prompt")}


def _answered(
    model: LoadedModel, requests: Sequence[dict[str, Any]], decoding: Mapping[str, Any], few_shot: int, source: str
) -> list[dict[str, Any]]:
    """A result for each: who cannot be answered is told why, and the others are answered all the same."""
    asked = [request for request in requests if not isinstance(request, Unread)]
    if len(asked) < len(requests):
        answered = iter(_answered(model, asked, decoding, few_shot, source) if asked else [])
        return [dict(request) if isinstance(request, Unread) else next(answered) for request in requests]
    try:
        answers = model.complete(requests, few_shot=few_shot, few_shot_from=source, **decoding)
        return [_result(model, request, answer) for request, answer in zip(requests, answers, strict=True)]
    except BadRequest as error:
        if len(requests) == 1:
            return [{"error": str(error).replace("request 0: ", "")}]
        return [result for one in requests for result in _answered(model, [one], decoding, few_shot, source)]


def _result(model: LoadedModel, request: dict[str, Any], answer: Answer) -> dict[str, Any]:
    result: dict[str, Any] = {"answer": answer.text, "finish": answer.finish, "tokens": len(answer.tokens)}
    result["confidence"] = round(answer.confidence, 4)
    if answer.scores:
        result["logprobs"] = [[score.text, score.logprob] for score in answer.scores]
    if request.get("options"):
        talk = {name: request[name] for name in ("history", "examples") if request.get(name)}
        scores = model.scores(request.get("audio"), request["prompt"], request["options"], **talk)
        result |= {"scores": scores, "likeliest": max(scores, key=scores.__getitem__)}
    return result


def _to_do(
    model: LoadedModel, requests: Sequence[dict[str, Any]], settings: dict[str, Any], source: Path, output: Path
) -> tuple[list[str], list[int]]:
    """What each answer follows from, and the places of the requests that no earlier run has answered.

    Raises:
        BadRequest: the output is a file of something else, which would be lost.
    """
    basis = settings | model.basis(few_shot=settings["few_shot"], few_shot_from=settings["few_shot_from"])
    with ThreadPoolExecutor(READERS) as pool:  # on a volume, each look at a file takes its time
        found = pool.map(_recordings, requests)
        asked = [
            digest_value({"request": request, **({"recordings": own} if own else {}), **basis})
            for request, own in zip(requests, found, strict=True)
        ]
    known = _known(output)
    if output.exists() and (output.samefile(source) or not (known or output.stat().st_size == 0)):
        what = "the requests themselves" if output.samefile(source) else "something else than answers"
        raise BadRequest(f"--output: expected a new file, or one of answers, got {output}, which holds {what}")
    return asked, [place for place, digest in enumerate(asked) if digest not in known]


def _recordings(request: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Size and time of the files that a request names; one that is not there may be tomorrow."""
    examples = request.get("examples")
    shown = [one.get("audio") for one in examples if isinstance(one, dict)] if isinstance(examples, list) else []
    files = filter(None, map(named_file, [*shown, request.get("audio")]))
    return [(status.st_size, status.st_mtime_ns) for status in (file.stat() for file in files)]


def _known(output: Path, ranks: int = 0) -> dict[str, dict[str, Any]]:
    """Lines that were written, by what they answer; a last one that a run broke off in is none.

    Args:
        ranks: those whose parts are there, even where the folder does not list them yet.
    """
    known = {}
    parts = {*output.parent.glob(f"{output.name}.part-*"), *(_part(output, rank) for rank in range(ranks))}
    for path in (output, *sorted(parts)):
        for line in read_text(path).split("\n") if path.is_file() else ():
            try:
                answer = json.loads(line)
                known[str(answer["asked"])] = answer
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
    return known


def _part(output: Path, rank: int) -> Path:
    return output.with_name(f"{output.name}.part-{rank}")
