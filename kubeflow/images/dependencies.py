"""Print what pyproject.toml depends on, without the project itself, for an image layer that code does not touch.

python dependencies.py pyproject.toml EXTRA … > requirements.txt        project and extras
python dependencies.py --only pyproject.toml EXTRA … > requirements.txt only the extras
"""

import sys
import tomllib
from pathlib import Path

arguments = [argument for argument in sys.argv[1:] if argument != "--only"]
project = tomllib.loads(Path(arguments[0]).read_text())["project"]
lines = [] if "--only" in sys.argv else list(project["dependencies"])
for extra in arguments[1:]:
    lines += project["optional-dependencies"][extra]
print("\n".join(lines))
