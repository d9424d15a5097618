"""Answers of a trained model: to one question, or to a file of requests.

    python tools/generate.py runs/demo --audio dog.wav --prompt "what is it?" --stream
    python tools/generate.py runs/demo --audio dog.wav --prompt "what is it?" --option "a dog" --option "a cat"
    python tools/generate.py runs/demo --requests asked.jsonl --output answers.jsonl max_new_tokens=16
    torchrun --nproc_per_node 2 tools/generate.py runs/demo --requests asked.jsonl --output answers.jsonl

The model is the folder of a run, a stage, a checkpoint or a release, or models:/NAME@ALIAS. A file holds a JSON object
a line, with prompt, audio, history, examples, options and decoding (docs/answers.md). Ranks share the requests; with
--tensor and --pipeline they share the model. A run that was ended is gone on with by the same command. How answers are
decoded stands behind it as key=value: max_new_tokens, temperature, top_k, top_p, repetition_penalty, beams,
length_penalty, stop, seed, logprobs, unsure, least_confidence. With unsure="none of these" that is said where the
model is not sure of an answer (docs/answers.md), and how sure it is stands behind it.
"""

import argparse
import sys
from pathlib import Path

from megatron_af.config import ConfigError, ParallelConfig
from megatron_af.entry import command, importing
from megatron_af.inference.requests import BadRequest, settings_of
from megatron_af.progress import Progress, silent
from megatron_af.release.named import named
from megatron_af.serve.settings import PRECISIONS


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder, or models:/NAME@ALIAS, models:/NAME/NUMBER")
    parser.add_argument("decoding", nargs="*", metavar="key=value", help="how answers are decoded")
    parser.add_argument("--prompt", help="one question")
    parser.add_argument("--audio", help="its recording; without one it is about nothing heard")
    parser.add_argument("--option", action="append", default=[], help="tell how likely this answer is (repeatable)")
    parser.add_argument("--stream", action="store_true", help="print the answer while it is written")
    parser.add_argument("--requests", type=Path, help="a JSON Lines file of questions")
    parser.add_argument("--output", type=Path, help="where its answers go, a line each")
    parser.add_argument("--few-shot", type=int, default=0, metavar="K", help="show K retrieved examples before each")
    parser.add_argument("--from", dest="source", default="", help="data set whose index the examples come from")
    parser.add_argument("--precision", choices=PRECISIONS, default="", help="of the weights; default: as trained")
    parser.add_argument("--tensor", type=int, default=1, help="ranks that share each layer")
    parser.add_argument("--pipeline", type=int, default=1, help="ranks that share the layers")
    arguments = parser.parse_intermixed_args()
    if (arguments.prompt is None) == (arguments.requests is None):
        raise BadRequest("expected one of --prompt and --requests")
    if arguments.requests is not None and arguments.output is None:
        raise BadRequest("--requests: expected --output FILE for the answers beside it")
    decoding = vars(settings_of(arguments.decoding))
    # Imported only now: a command answers at once, and megatron-core must be made portable before its modules run.
    with importing():
        import torch.distributed as dist

        from megatron_af.parallel.world import join_world

        join_world()
        from megatron_af.serve.answer_file import answer_file
        from megatron_af.serve.loaded_model import LoadedModel

    ranks = arguments.tensor * arguments.pipeline
    if min(arguments.tensor, arguments.pipeline) < 1 or dist.get_world_size() % ranks:
        raise ConfigError(
            "the model cannot lie so",
            [f"--tensor {arguments.tensor} x --pipeline {arguments.pipeline} on {dist.get_world_size()} processes: "
             "expected a product that divides their number (torchrun --nproc_per_node)"],
        )  # fmt: skip
    parallel = ParallelConfig(tensor=arguments.tensor, pipeline=arguments.pipeline)
    few_shot = {"few_shot": arguments.few_shot, "few_shot_from": arguments.source}
    first = dist.get_rank() == 0
    with LoadedModel(named(arguments.model), precision=arguments.precision, parallel=parallel) as model:
        if arguments.requests is not None:
            with Progress() if first else silent() as progress:
                asked, answered = arguments.requests, arguments.output
                counts = answer_file(model, asked, answered, decoding, **few_shot, progress=progress)
                told = f"{counts.answered} answered, {counts.refused} refused, {counts.kept} of an earlier run"
                progress.say(f"{answered}: {told}")
        elif arguments.option:
            for option, logprob in model.scores(arguments.audio, arguments.prompt, arguments.option).items():
                _print(f"{logprob:9.3f}  {option}\n", first)
        elif arguments.stream:
            for piece in model.stream(arguments.audio, arguments.prompt, **few_shot, **decoding):
                _print(piece, first)
            _print("\n", first)
        else:
            (answer,) = model.complete([{"audio": arguments.audio, "prompt": arguments.prompt}], **few_shot, **decoding)
            sure = f" [{answer.confidence:.0%}]" if decoding["unsure"] else ""
            _print(f"{answer.text}{sure}\n", first)
    dist.destroy_process_group()
    return 0


def _print(text: str, first: bool) -> None:
    if first:
        print(text, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
