"""Completion of the tools' options, subcommands and configuration keys in bash or zsh.

    python tools/complete.py > complete.sh       # once; then, in ~/.bashrc or ~/.zshrc:  source .../complete.sh

``eval "$(python tools/complete.py)"`` does so for one shell. A TAB behind ``python tools/NAME.py``, whichever Python it
is, or behind ``torchrun … tools/NAME.py`` then completes; file names as ever.
"""

import argparse
import sys
from pathlib import Path

from megatron_af.completion import script
from megatron_af.entry import command


@command
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    print(script(Path(__file__).parent), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
