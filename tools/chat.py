"""Talk with a trained model about a recording, in the terminal.

    python tools/chat.py runs/demo dog.wav
    python tools/chat.py models:/demo@champion temperature=0.7 seed=3
    arecord -q -t raw -f S16_LE -r 16000 -c 1 > ear & python tools/chat.py runs/live --microphone ear      # mkfifo ear

The recording is heard once, and the conversation read once: an answer costs its own tokens. ``/help`` shows the
commands: another recording, another answer, and where an answer looked. How answers are decoded stands behind it as
key=value, as for tools/generate.py. Lines of a pipe or a file are read as if they were typed.

With ``--microphone`` the model hears a WAV file, or a pipe of 16-bit mono samples at its rate, while it goes on, and
each question is about what was heard so far (docs/answers.md says which models can).
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from megatron_af.entry import command, importing
from megatron_af.inference.requests import settings_of
from megatron_af.release.named import named
from megatron_af.serve.settings import PRECISIONS


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder, or models:/NAME@ALIAS, models:/NAME/NUMBER")
    parser.add_argument("recording", nargs="?", help="what to talk about; /load FILE changes it")
    parser.add_argument("--precision", choices=PRECISIONS, default="", help="of the weights; default: as trained")
    parser.add_argument("--microphone", metavar="FILE", help="hear this file or pipe while it goes on")
    parser.add_argument("decoding", nargs="*", metavar="key=value", help="how answers are decoded")
    arguments = parser.parse_intermixed_args()
    given = list(arguments.decoding)
    if arguments.recording and "=" in arguments.recording:
        given.insert(0, arguments.recording)
        arguments.recording = None
    decoding = settings_of(given)
    with importing():
        from megatron_af.serve.loaded_model import LoadedModel  # torch takes seconds to import

    with LoadedModel(named(arguments.model), precision=arguments.precision) as model:
        # Imported only now: megatron-core must have been made portable before its modules run.
        from megatron_af.serve.terminal import Ear, Terminal

        if arguments.microphone:
            with model.live() as live, Ear(live, Path(arguments.microphone)) as ear:
                return _each_line(lambda line: ear.line(line, _say, decoding))
        with model.session() as session:
            if arguments.recording:
                session.load(arguments.recording)
                print(f"[{arguments.recording}: {session.seconds:.1f} s]")
            return _each_line(Terminal(session, _say, decoding).line)


def _say(text: str) -> None:
    print(text, end="", flush=True)


def _each_line(do: Callable[[str], bool]) -> int:
    while True:
        if sys.stdin.isatty():
            _say("> ")
        line = sys.stdin.readline()
        if not line or not do(line):
            return 0


if __name__ == "__main__":
    sys.exit(main())
