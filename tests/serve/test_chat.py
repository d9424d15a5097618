"""OpenAI's messages become requests, or one sentence says why not."""

import base64
import json
from typing import Any

import pytest

from megatron_af.inference.decoding import Decoding
from megatron_af.inference.writing import Answer, Piece, TokenScore
from megatron_af.serve.chat import Pieces, Refused, completion, error_body, read_ask
from megatron_af.serve.settings import ServingConfig

SOUND = base64.b64encode(b"RIFFsound").decode()
AUDIO = {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}


def user(*parts: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": content}


def url(address: str) -> dict[str, Any]:
    return {"type": "audio_url", "audio_url": {"url": address}}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def heard(data: str) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def read(messages: Any, **more: Any) -> Any:
    return read_ask({"model": "af", "messages": messages} | more, model="af", settings=ServingConfig())


@pytest.mark.parametrize(
    ("messages", "request_"),
    [
        ([{"role": "user", "content": "hello"}], {"prompt": "hello", "audio": None, "history": None}),
        ([user(AUDIO, "what?")], {"prompt": "what?", "audio": b"RIFFsound", "history": None}),
        ([user(heard(f"{SOUND[:4]}\r\n{SOUND[4:]}\n"), "a")], {"prompt": "a", "audio": b"RIFFsound", "history": None}),
        ([user(heard(SOUND.rstrip("=")), "a")], {"prompt": "a", "audio": b"RIFFsound", "history": None}),
        ([user(heard("-_8="), "a")], {"prompt": "a", "audio": b"\xfb\xff", "history": None}),
        ([user(heard(f"data:;base64,{SOUND}"), "a")], {"prompt": "a", "audio": b"RIFFsound", "history": None}),
        ([user(url("DATA:audio/wav;base64,%2B%2F8%3D"), "a") | {"name": "me", "audio": None}],
         {"prompt": "a", "audio": b"\xfb\xff", "history": None}),
        ([user(AUDIO, "a"), said("b") | {"audio": {"id": "c"}}, user("d")],
         {"prompt": "d", "audio": b"RIFFsound", "history": [{"user": "a", "assistant": "b"}]}),
        ([user("what?", url(f"data:audio/wav;base64,{SOUND}"), "and why?")],
         {"prompt": "what?\nand why?", "audio": b"RIFFsound", "history": None}),
        ([user(url("dog.wav"), "what?")], {"prompt": "what?", "audio": "dog.wav", "history": None}),
        ([{"role": "system", "content": "be short"}, user(AUDIO, "what?"), said("a dog"), user("loud?")],
         {"prompt": "loud?", "audio": b"RIFFsound", "history": [{"user": "be short\nwhat?", "assistant": "a dog"}]}),
        ([user(AUDIO, "what?"), said("a dog"), user(url("cat.wav"), "what?")],
         {"prompt": "what?", "audio": "cat.wav",
          "examples": [{"audio": b"RIFFsound", "prompt": "what?", "answer": "a dog"}]}),
    ],
)  # fmt: skip
def test_a_conversation_becomes_a_request(messages: Any, request_: dict[str, Any]) -> None:
    assert read(messages).request == request_


def test_settings_and_their_defaults() -> None:
    ask, other = read([user("x")]), read([user("x")])
    assert (ask.stream, ask.usage_at_end) == (False, False)
    assert ask.decodings == (Decoding(max_new_tokens=64, seed=ask.decodings[0].seed),)
    assert ask.decodings != other.decodings, "drawn anew each time where no seed is given"
    more = {"max_completion_tokens": 7, "n": 2, "stream": True, "stream_options": {"include_usage": True}}
    how = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.5, "seed": 3, "stop": "."}
    how |= {"unsure": "none of these", "least_confidence": 0.5}
    neutral = {"tools": [], "frequency_penalty": 0, "user": "ada"}
    ask = read([user("x")], **more, **how, **neutral, logprobs=True, top_logprobs=4)
    assert (ask.stream, ask.usage_at_end) == (True, True)
    wanted = {**how, "stop": (".",), "max_new_tokens": 7, "logprobs": 4}
    assert ask.decodings == tuple(Decoding(**(wanted | {"seed": seed})) for seed in (3, 4))  # type: ignore[arg-type]
    assert read([user("x")], max_tokens=9, logprobs=True).decodings[0].max_new_tokens == 9
    assert read([user("x")], logprobs=True).decodings[0].logprobs == 0
    assert read([user("x")], stop=["a", "b"], logprobs=False).decodings[0].stop == ("a", "b")


@pytest.mark.parametrize(
    ("messages", "more", "says"),
    [
        (None, {}, "messages: expected a list of turns, got nothing"),
        ([], {}, "messages: expected a list of turns, got nothing"),
        (["x"], {}, "messages[0]: expected an object with role and content, got text"),
        ([{"role": "tool", "content": "x"}], {}, "messages[0].role: expected system, user or assistant, got 'tool'"),
        ([{"role": "user"}], {}, "messages[0].content: expected text or a list of parts, got nothing"),
        ([user({"type": "text", "text": 3})], {}, "messages[0].content[0].text: expected text, got a number"),
        ([user({"type": "image_url"})], {}, "expected text, input_audio or audio_url, got 'image_url'"),
        ([user("\ud83d")], {}, "half of a surrogate pair"),
        ([user({"type": "input_audio", "input_audio": {}})], {}, "input_audio.data: expected text, got nothing"),
        ([user({"type": "input_audio", "input_audio": {"data": "/x.wav"}})], {}, "expected base64, got '/x.wav'"),
        ([user(heard(SOUND.replace("R", " ")), "x")], {}, "' ' behind"),
        ([user(heard(SOUND.rstrip("=") + "A" * (1 + -len(SOUND.rstrip("=")) % 4)), "x")], {}, "it is cut"),
        ([user({"type": "audio_url", "audio_url": "a.wav"})], {}, "expected an object with url, got text"),
        ([user("x") | {"audio": SOUND}], {}, "messages[0].audio: not read here"),
        ([user({"type": "text", "text": "x", "audio": SOUND})], {}, "content[0].audio: not read here"),
        ([user({"type": "input_audio", "input_audio": {"data": SOUND, "start": 1}})], {}, "start: not read here"),
        ([user(url("https://x.org/a.wav"), "x")], {}, "this server fetches nothing"),
        ([user(AUDIO, AUDIO, "x")], {}, "expected one recording a turn, got another one"),
        ([{"role": "system", "content": [AUDIO]}, user("x")], {}, "expected recordings in turns of the user only"),
        ([user("x"), user("y")], {}, "messages[1]: expected a turn of the assistant, got one of user"),
        ([user("x"), said("y")], {}, "messages: expected a turn of the user at the end"),
        ([user("x"), {"role": "system", "content": "z"}], {}, "expected system turns before all others"),
        ([user("x"), said("y"), user(AUDIO, "z")], {}, "got 1 in 2 turns"),
        ([user("x" * 40_000)], {}, "expected at most 32768 characters, got 40000"),
        ([user("x")], {"temperature": -1}, "temperature: expected a number from 0 on, got -1"),
        ([user("x")], {"temperature": "hot"}, "temperature: expected a number from 0 on, got 'hot'"),
        ([user("x")], {"top_p": 0}, "top_p: expected a number above 0, at most 1, got 0"),
        ([user("x")], {"seed": 1.5}, "seed: expected a whole number from 0 on, got 1.5"),
        ([user("x")], {"stop": [""]}, "stop: expected texts that are not empty, got ['']"),
        ([user("x")], {"unsure": 3}, "unsure: expected a text to say in place of an answer, got 3"),
        ([user("x")], {"least_confidence": 0.5}, "least_confidence: expected unsure beside it"),
        ([user("x")], {"unsure": "?", "least_confidence": 2}, "least_confidence: expected a number from 0 to 1, got 2"),
        ([user("x")], {"stop": 3}, "stop: expected a text or a list of texts, got 3"),
        ([user("x")], {"stop": ["a", "b", "c", "d", "e"]}, "stop: expected at most 4 texts, got 5"),
        ([user("x")], {"top_logprobs": 3}, "top_logprobs: expected logprobs = true beside it"),
        ([user("x")], {"logprobs": True, "top_logprobs": 21}, "top_logprobs: expected a whole number from 0 to 20"),
        ([user("x")], {"n": 9}, "n: expected a whole number from 1 to 8, got 9"),
        ([user("x")], {"n": True}, "n: expected a whole number from 1 to 8, got True"),
        ([user("x")], {"max_tokens": 0}, "max_tokens: expected a whole number from 1 to 512, got 0"),
        ([user("x")], {"stream": "yes"}, "stream: expected true or false, got 'yes'"),
        ([user("x")], {"stream_options": {"include_use": True}}, "stream_options.include_use: no option of a stream"),
        ([user("x")], {"stream_options": 3}, "stream_options: expected an object, got a number"),
        ([user("x")], {"tools": [{}]}, "tools: this server has no such setting; leave it out"),
        ([user("x")], {"max_token": 3}, "max_token: not a field of this server; did you mean max_tokens?"),
    ],
)
def test_what_cannot_be_answered_is_said_in_one_sentence(messages: Any, more: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused) as refused:
        read(messages, **more)
    assert refused.value.status == 400
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_another_model_and_another_body() -> None:
    with pytest.raises(Refused, match="model: expected 'af', which is served here, got 'gpt'") as refused:
        read([user("x")], model="gpt")
    assert (refused.value.status, refused.value.code) == (404, "model_not_found")
    with pytest.raises(Refused, match="the body: expected a JSON object, got a list"):
        read_ask([1], model="af", settings=ServingConfig())


def test_whole_and_in_pieces_an_answer_is_the_same() -> None:
    ask = read([user("x")], n=2, stream=True, stream_options={"include_usage": True}, logprobs=True, top_logprobs=1)
    scores = tuple(TokenScore(token=n, text=text, logprob=-1.0, top=(("b", -0.5),)) for n, text in enumerate("ab"))
    answers = [
        Answer(text="a b", tokens=(0, 1), finish="stop", prompt_tokens=5, scores=scores),
        Answer(text="a", tokens=(0,), finish="length", prompt_tokens=5, scores=scores[:1], confidence=0.25),
    ]
    whole = completion(ask, answers, 5)
    assert [choice["message"]["content"] for choice in whole["choices"]] == ["a b", "a"]
    assert [choice["finish_reason"] for choice in whole["choices"]] == ["stop", "length"]
    assert whole["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert whole["choices"][1]["logprobs"]["content"] == [
        {"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -0.5, "bytes": [98]}]}
    ]
    pieces = Pieces(ask, 5)
    bodies = list(pieces.first())
    for index, piece in ((0, "a"), (1, "a"), (0, " b")):
        bodies.append(pieces.of(index, Piece(text=piece, scores=scores[len(piece) - 1 :][:1])))
    assert not pieces.ended
    bodies += [pieces.of(1, answers[1]), pieces.of(0, answers[0])]
    assert pieces.ended
    bodies += pieces.last()
    for index, choice in enumerate(whole["choices"]):
        own = [body["choices"][0] for body in bodies[:-1] if body["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert "".join(part["delta"].get("content", "") for part in own) == choice["message"]["content"]
        assert [part["finish_reason"] for part in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
        assert own[-1]["confidence"] == choice["confidence"] == (1.0, 0.25)[index]
        told = [token for part in own if part["logprobs"] for token in part["logprobs"]["content"]]
        assert told == choice["logprobs"]["content"]
    assert bodies[-1]["choices"] == [] and bodies[-1]["usage"] == whole["usage"]
    silent = read([user("x")])
    assert completion(silent, answers[:1], 5)["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    ("status", "kind"), [(400, "invalid_request_error"), (429, "rate_limit_error"), (503, "server_error")]
)
def test_errors_in_openais_form(status: int, kind: str) -> None:
    body = error_body(Refused(status, "no", field="n", code="c"))
    assert body == {"error": {"message": "no", "type": kind, "param": "n", "code": "c"}}


def test_a_refusal_can_be_sent_whatever_it_quotes() -> None:
    with pytest.raises(Refused) as refused:
        read([user("x")], **{"\ud800": 1})
    assert json.dumps(error_body(refused.value), ensure_ascii=False).encode()
