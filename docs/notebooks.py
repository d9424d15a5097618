"""Lets mkdocs show the notebooks of docs/examples as pages (``hooks`` of mkdocs.yml): what they say, run and print.

    page_of(json.loads(Path("docs/examples/chat.ipynb").read_text()))     # Markdown
"""

import json
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Beside each notebook, which stays to be downloaded, a page of it."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = page_of(json.loads(file.content_string))
        name = file.src_uri.rpartition("/")[2]
        title, _, rest = page.partition("\n")
        page = f"{title}\n\n[This page as a notebook]({name})\n{rest}"
        files.append(File.generated(config, file.src_uri.replace(".ipynb", ".md"), content=page))
    return files


def page_of(notebook: dict[str, Any]) -> str:
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            parts.append(fenced("python", source))
            parts += [fenced("text", text_of(output)) for output in cell["outputs"]]
    return "\n\n".join(parts) + "\n"


def text_of(output: dict[str, Any]) -> str:
    """Of what a cell printed, or of its last line's value."""
    return "".join(output["text"] if output["output_type"] == "stream" else output["data"]["text/plain"])


def fenced(language: str, text: str) -> str:
    marks = "```" if "```" not in text else "````"
    return f"{marks}{language}\n{text.rstrip()}\n{marks}"
