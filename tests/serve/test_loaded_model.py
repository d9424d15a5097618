"""The front door: a plain Python process loads what training left, answers, embeds, and says what it cannot do."""

import json
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import megatron_af
from megatron_af.config import Config, ParallelConfig
from megatron_af.inference.requests import BadRequest
from megatron_af.runs.bundle import make_release
from megatron_af.serve import loaded_model, places
from tests.data.toy import write_tone
from tests.examples import example
from tests.hub import hub_cache
from tests.trained_run import trained_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with ``dog.wav``, ``rain.wav``, ``runs/demo`` and ``runs/other``."""
    folder = tmp_path_factory.mktemp("front_door")
    for name, seconds in (("dog", 2.0), ("rain", 12.0), ("creak1", 1.0), ("creak2", 1.5)):
        write_tone(folder / f"{name}.wav", seconds, len(name))
    (folder / "broken.wav").write_bytes(b"RIFF")
    trained_run(folder, "demo")
    trained_run(folder, "other", seed=1)
    return folder


@pytest.fixture(scope="module")
def release(folder: Path) -> Path:
    config: Config = places.find(folder / "runs/demo")[0]
    return make_release(config, "stage")


def python(folder: Path, program: str) -> Any:
    """What a plain Python process prints last, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_package_brings_neither_torch_nor_megatron(folder: Path) -> None:
    program = "import json, sys, megatron_af; print(json.dumps(sorted(sys.modules)))"
    loaded = python(folder, program)
    assert "megatron_af" in loaded
    assert not {"torch", "megatron", "numpy", "omegaconf", "nvidia", "megatron_af.config"} & set(loaded)


EVERY_PLACE = """
import json
import megatron_af as af

found = {}
for place in PLACES:
    with af.load(place) as model:
        found[place] = [model.name, model.answer("dog.wav", "w3 w17", max_new_tokens=4)]
        found[place] += [model.answer(None, "w3", max_new_tokens=4)]
print(json.dumps(found))
"""


def test_a_run_a_stage_a_checkpoint_and_a_release_answer_alike(folder: Path, release: Path) -> None:
    run = "runs/demo"
    named = [run, f"{run}/stage", f"{run}/stage/checkpoints/step_00000001", str(release)]
    found = python(folder, EVERY_PLACE.replace("PLACES", repr(named)))
    assert set(found) == set(named) and len({tuple(answers) for answers in found.values()}) == 1
    assert all(isinstance(answer, str) for answer in found[run]) and found[run][0] == "demo"


TEACH = """
import json
import megatron_af as af
from megatron_af.inference.requests import BadRequest

model = af.load("runs/demo")

def refused(*given, **more):
    try:
        model.teach(*given, **more)
    except BadRequest as error:
        return str(error)

def ask(**how):
    return model.answer("dog.wav", "w3", max_new_tokens=6, **how)

shown = [{"audio": name, "prompt": "w1 w2", "answer": label} for name, label in (("rain.wav", "w5"), ("dog.wav", "w6"))]
turns = {"history": [{"user": "w4", "assistant": "w6"}]}
plain = [ask(), ask(**turns)]
wanted = [ask(examples=shown[:1]), ask(examples=shown)]
taught = []
for example in shown:
    model.teach(example["answer"], [example["audio"]], prompt="w1 w2")
    taught.append(ask())
both = model.answers([{"audio": "dog.wav", "prompt": "w3"}, {"prompt": "w3"}], max_new_tokens=6)
others = [ask(**turns), ask(examples=shown[:1])]
problems = [refused("w5", []), refused("w5", "dog.wav"), refused(" ", ["dog.wav"]), refused("w5", ["broken.wav"]),
            refused("w5 " * 300, ["dog.wav", "rain.wav"])]
kept = ask()
model.forget()
alone = model.answer(None, "w3", max_new_tokens=6)
print(json.dumps({"plain": plain, "wanted": wanted, "taught": taught, "both": both, "others": others,
                  "problems": problems, "kept": kept, "forgotten": ask(), "alone": alone}))
"""


def test_a_class_is_taught_by_clips(folder: Path) -> None:
    found = python(folder, TEACH)
    assert found["taught"] == found["wanted"] and found["wanted"][1] != found["plain"][0]
    assert found["both"] == [found["wanted"][1], found["alone"]], "what hears nothing stands behind no examples"
    assert found["others"] == [found["plain"][1], found["wanted"][0]]
    none, one, nameless, broken, many = found["problems"]
    assert none == "teach: 'w5': expected recordings of it, got none"
    assert one == "teach: 'w5': expected recordings of it, got one: put it into a list"
    assert nameless == "teach: expected a label, got none"
    assert broken.startswith("teach: 'w5': clip 0: expected a recording, got what cannot be decoded")
    assert "4 examples take more than the 512 tokens of the stage's max_text_tokens; teach fewer clips" in many
    assert found["kept"] == found["wanted"][1] and found["forgotten"] == found["plain"][0]


TWO_MODELS = """
import json
from pathlib import Path
import megatron_af as af

def ask(model):
    shown = [{"audio": "rain.wav", "prompt": "w1 w2", "answer": "w5"}]
    return [
        model.answer("dog.wav", "w3 w17", max_new_tokens=4),
        model.answer(Path("rain.wav"), "w3", max_new_tokens=4, history=[{"user": "w4", "assistant": "w6"}]),
        model.answer(Path("rain.wav").read_bytes(), "w3", max_new_tokens=4, examples=shown),
        *model.answers([{"audio": "rain.wav", "prompt": "w3"}, {"prompt": "w9"}], max_new_tokens=4),
        model.embed("dog.wav").tolist(),
        model.embed(["rain.wav", Path("dog.wav")]).tolist(),
        model.embed(text="w7 w8").tolist(),
        model.embed(text=["w7 w8", "w9"]).tolist(),
    ]

demo = af.load("runs/demo")
alone = ask(demo)
other = af.load("runs/other")
together = [ask(other), ask(demo), ask(other)]
demo.close()
print(json.dumps({"alone": alone, "together": together, "after": ask(other)}))
"""


def test_two_models_live_in_one_process_and_answer_as_if_alone(folder: Path) -> None:
    found = python(folder, TWO_MODELS)
    other, demo, again = found["together"]
    assert demo == found["alone"] and other == again == found["after"]
    assert other[:5] != demo[:5], "each has its own weights"
    dog, (rain, dog_again), text, texts = (np.array(vectors) for vectors in demo[5:])
    assert dog.shape == text.shape == (8,) and texts.shape == (2, 8)
    np.testing.assert_allclose(dog, dog_again, atol=1e-5)
    np.testing.assert_allclose(text, texts[0], atol=1e-5)
    np.testing.assert_allclose([np.linalg.norm(v) for v in (dog, rain, text)], 1, atol=1e-5)
    assert abs(dog @ rain) < 1 - 1e-4


EVERY_WAY = """
import json
import megatron_af as af

model = af.load("runs/demo")
asked = {"audio": "dog.wav", "prompt": "w3 w17"}
how = {"temperature": 1.5, "seed": 3, "max_new_tokens": 5}
cold = {"audio": "dog.wav", "prompt": "w3 w17", "decoding": {"temperature": 0.0, "logprobs": 1}}
drawn, greedy = model.complete([asked, cold], **how)
first = next(iter(model.stream("dog.wav", "w3 w17", **how)))  # the rest is not wanted
print(json.dumps({
    "drawn": drawn.text,
    "streamed": "".join(model.stream("dog.wav", "w3 w17", **how)),
    "first": first,
    "greedy": greedy.text,
    "plain": model.answer("dog.wav", "w3 w17", max_new_tokens=5),
    "logprobs": [score.logprob for score in greedy.scores],
    "likely": model.scores("dog.wav", "w3 w17", [greedy.text, "w1"]),
    "talk": list(model.scores("dog.wav", "w3", ["w1", "w2"], history=[{"user": "w4", "assistant": "w6"}]).values()),
    "searched": model.answer("dog.wav", "w3 w17", beams=3, max_new_tokens=5),
}))
"""


def test_answers_are_drawn_streamed_searched_and_scored(folder: Path) -> None:
    found = python(folder, EVERY_WAY)
    assert found["drawn"] == found["streamed"] != found["greedy"] == found["plain"]
    assert found["streamed"].startswith(found["first"]) and found["first"] != found["streamed"]
    assert len(found["logprobs"]) == 5 and max(found["logprobs"]) < 0 and isinstance(found["searched"], str)
    # The whole answer was told token by token; scored, its end comes behind.
    assert found["likely"][found["greedy"]] < sum(found["logprobs"]) < 0
    assert max(found["talk"]) < 0


REFUSALS = """
import json
import megatron_af as af

model, clap, released = af.load("runs/demo"), af.load("runs/demo/clap"), af.load(RELEASE)
said = {}
for name, ask in {
    "no file": lambda: model.answer("gone.wav", "w1"),
    "broken": lambda: model.answer("broken.wav", "w1"),
    "no bytes": lambda: model.answer(b"", "w1"),
    "no prompt": lambda: model.answer("dog.wav", " "),
    "too long": lambda: model.answer("dog.wav", "w1 " * 600),
    "both": lambda: model.embed("dog.wav", text="w1"),
    "neither": lambda: model.embed(),
    "broken to embed": lambda: model.embed("broken.wav"),
    "contrastive": lambda: clap.answer("dog.wav", "w1"),
    "no index": lambda: model.answer("dog.wav", "w1", few_shot=2),
    "no clap": lambda: released.embed("dog.wav"),
}.items():
    try:
        said[name] = ["", ask()]
    except Exception as error:
        said[name] = [type(error).__name__, str(error)]
released.close()
released.close()
closed = {"closed": lambda: released.answer("dog.wav", "w1"), "gone": lambda: released.embed(text="w1")}
for name, ask in closed.items():
    try:
        said[name] = ["", ask()]
    except Exception as error:
        said[name] = [type(error).__name__, str(error)]
said["clap embeds"] = ["", clap.embed("dog.wav").tolist() == model.embed("dog.wav").tolist()]
print(json.dumps(said))
"""


def test_what_cannot_be_done_is_said_in_one_sentence(folder: Path, release: Path) -> None:
    said = python(folder, REFUSALS.replace("RELEASE", repr(str(release))))
    assert said.pop("clap embeds") == ["", True]
    expected = {
        "no file": "request 0: audio: expected a file, base64 or bytes, got 'gone.wav', which is neither",
        "broken": "request 0: audio: expected a recording, got what cannot be decoded: ",
        "no bytes": "request 0: audio: expected a recording, got what cannot be decoded: ",
        "no prompt": "request 0: prompt: expected text, got ' '",
        "too long": "request 0: expected a question that takes at most 512 tokens, got one of 602; shorten it",
        "both": "embed: expected audio or text, got both",
        "neither": "embed: expected audio or text, got neither",
        "broken to embed": "audio 0: expected a recording, got what cannot be decoded: ",
        "contrastive": "stage clap of demo gives no answers, its objective is contrastive; load a stage that",
        "no index": "few_shot_from: expected an index of this model, got ''; it has none: build one",
        "no clap": "embed: expected a run with a trained AF-CLAP stage, got ",
    }
    expected |= dict.fromkeys(("closed", "gone"), f"{release.name} was closed; load it again")
    assert said.keys() == expected.keys()
    for name, (kind, sentence) in said.items():
        assert (kind, sentence[: len(expected[name])]) == ("BadRequest", expected[name]) and "\n" not in sentence


def examples() -> dict[str, str]:
    (block,) = re.findall(r"## Use a trained model\n.*?```python\n(.*?)```", README, flags=re.DOTALL)
    module = "from pathlib import Path\nfrom megatron_af.serve.loaded_model import LoadedModel\n"
    found = "from pathlib import Path\nfrom megatron_af.serve.places import embedding_stage, find\n"
    return {
        "README": block,
        "megatron_af": example(megatron_af.__doc__),
        "loaded_model": module + example(loaded_model.__doc__),
        "places": found + example(places.__doc__),
    }


def test_the_examples_of_readme_and_docstrings_run(folder: Path) -> None:
    """One after another in one process, as somebody would type them."""
    assert all("(" in text for text in examples().values())
    program = "\n".join(examples().values()).replace('["a dog", "a cat"]', '["w1 w2", "w3"]')  # words that it has
    assert python(folder, program + "\nprint('\\n0')") == 0


def test_a_release_answers_alone_when_every_cache_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained with a tokenizer from the hub; released, moved, and all that it was made from removed."""
    write_tone(tmp_path / "dog.wav", 2.0, 0)
    config = trained_run(tmp_path, "demo")
    cache = tmp_path / "hub"
    words = (tmp_path / "tokenizer.json").read_text()
    hub_cache(cache, "org/words", {"tokenizer.json": words, "tokenizer_config.json": "{}"})
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    named = replace(config, data=replace(config.data, tokenizer="org/words"))
    made = make_release(named, "stage")
    said = python(tmp_path, ALONE.format(place="runs/demo"))
    moved = made.rename(tmp_path / "released")
    for gone in (cache, tmp_path / "runs"):
        shutil.rmtree(gone)
    (tmp_path / "tokenizer.json").unlink()
    assert python(tmp_path, ALONE.format(place=moved)) == said


ALONE = """
import json, megatron_af as af
print(json.dumps(af.load("{place}").answer("dog.wav", "w1 w2", max_new_tokens=4)))
"""


PRECISIONS_PROGRAM = """
import json, megatron_af as af
found = {}
for precision in ("", "fp32", "bf16", "int8"):
    model = af.load("runs/demo", precision=precision)
    (chunk,) = model._listener.model.chunks
    held = [*chunk.parameters(), *chunk.buffers()]
    found[precision] = [model.answer("dog.wav", "w1 w2", max_new_tokens=6), sum(tensor.nbytes for tensor in held)]
    found[precision].append(model.embed("dog.wav").tolist())
    model.close()
try:
    af.load("runs/demo", precision="int4")
except ValueError as error:
    found["int4"] = str(error)
print(json.dumps(found))
"""


def test_it_answers_in_less_memory(folder: Path) -> None:
    found = python(folder, PRECISIONS_PROGRAM)
    assert found["int4"] == "precision: expected fp32, bf16, int8 or nothing, got 'int4'"
    assert found[""] == found["fp32"] and found["fp32"][0]
    assert found["bf16"][1] * 2 == found["fp32"][1]
    linears = 4 * (64 * 128 + 64 * 64 + 3 * 64 * 96)  # of four layers
    rows = 4 * (128 + 64 + 2 * 96 + 64)
    assert found["int8"][1] == found["bf16"][1] - linears + 4 * rows
    for precision in ("bf16", "int8"):
        assert len(found[precision][0].split()) > 0
        assert np.dot(found[precision][2], found["fp32"][2]) > 0.99


BASIS = """
import json, numpy as np, megatron_af as af
from pathlib import Path
from megatron_af.inference.requests import BadRequest
from megatron_af.runs.calibration import calibrate
asked = dict(few_shot=0, few_shot_from="")
found = {}
for precision in ("", "bf16"):
    with af.load("runs/demo", precision=precision) as model:
        found[precision] = model.basis(**asked)
for confidence in (0.5, 0.25):
    calibration = calibrate("held", found[""]["weights"], [confidence] * 8, [True] * 8, np.eye(8, dtype=np.float32))
    files = calibration.write(Path("runs/demo/stage"))
    with af.load("runs/demo") as model:
        found[f"sure {confidence}"] = model.basis(**asked)
for file in files:
    file.unlink()
with af.load("runs/other") as model:
    found["other"] = model.basis(**asked)
    try:
        model.basis(few_shot=2, few_shot_from="train")
    except BadRequest as error:
        found["index"] = str(error)
print(json.dumps(found))
"""


def test_what_answers_follow_from_is_told(folder: Path) -> None:
    found = python(folder, BASIS)
    assert found.pop("index").startswith("few_shot_from: expected an index of this model, got 'train'")
    bases = {json.dumps(basis, sort_keys=True) for basis in found.values()}
    assert len(bases) == len(found) == 5
    assert found["bf16"] == found[""] | {"precision": "bf16"}
    assert found["sure 0.5"].keys() - found[""].keys() == {"calibration"}


def test_int8_is_refused_where_linears_are_cut() -> None:
    with pytest.raises(ValueError, match=r"got parallel\.tensor = 2; set it to 1, or precision to bf16"):
        loaded_model.LoadedModel("nowhere", precision="int8", parallel=ParallelConfig(tensor=2))


@pytest.mark.parametrize("options", ["yes", {"A": "yes"}, ["yes", "yes"], ["yes", ""], [1], []])
def test_options_are_a_list_of_texts_and_no_text_of_letters(options: Any) -> None:
    with pytest.raises(BadRequest, match="options: expected a list of texts that differ, got"):
        loaded_model.LoadedModel.scores(object.__new__(loaded_model.LoadedModel), None, "x", options)
    with pytest.raises(BadRequest, match="options: expected UTF-8, got"):
        loaded_model.LoadedModel.scores(object.__new__(loaded_model.LoadedModel), None, "x", ["caf\udce9"])


def test_an_option_beyond_the_learnt_positions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = SimpleNamespace(scores=lambda *_, **__: [None])
    monkeypatch.setattr(loaded_model.LoadedModel, "_rows", lambda *_: nullcontext((listener, [], Path())))
    with pytest.raises(BadRequest, match="options: one is too long behind this prompt"):
        loaded_model.LoadedModel.scores(object.__new__(loaded_model.LoadedModel), None, "x", ["yes", "no"])
