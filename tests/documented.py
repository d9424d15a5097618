"""Every command of README and docs, and what runs it: the page docs/commands.md.

    python -m tests.documented > docs/commands.md
"""

import re
import shlex
from pathlib import Path

from tests.pages import DOCS, ROOT, commands

SHELL = re.compile(r"^(?:while read|done |export |cat |mkfifo )")
"""Lines that are part of the commands around them."""

HELD: dict[str, str] = {
    # README and the ways in
    r"make demo|python tools/demo\.py":
        "what it calls, smaller: `tests/demo/test_run.py::test_demo_runs_whole_and_resumes`",
    r"make (lint|test)": "they are the tests themselves",
    r"python tools/start\.py my_sounds$": "run: `tests/start/test_run.py::test_from_a_folder_to_answers_and_once_only`",
    r"python tools/start\.py .* --dry-run":
        "run: `tests/start/test_run.py::test_a_dry_run_shows_settings_and_times_and_writes_nothing`",
    r"tools/doctor\.py": "run: `tests/tools/test_doctor.py::test_findings_and_exit_code`",
    r"tools/plan\.py": "run: `tests/tools/test_plan.py::test_a_plan_with_numbers_and_a_picture`",
    r"tools/prove\.py": "run, on toys: `tests/tools/test_prove.py::test_a_card_of_a_stage`",
    r"tools/report\.py":
        "what it calls: `tests/report/test_run.py::test_everything_of_a_run_is_on_the_page_and_nothing_outside_it`",
    # training
    r"pipeline\.torchrun --nnodes 2":
        "two nodes on one machine: `tests/af_pipelines/test_end_to_end.py`; as it stands not run here: needs GPUs",
    r"tools/pretrain_af\.py .*configs/demo\.yaml":
        "run, on a toy: `tests/train/test_trainer.py`",
    r"tools/pretrain_af\.py .*configs/af[12]": "not run here: needs GPUs and data; loads: `tests/test_curricula.py`",
    r"tools/run_curriculum\.py .*--dry-run":
        "what it calls: `tests/pipeline/test_curriculum.py::test_a_dry_run_refuses_what_the_run_refuses`",
    r"tools/run_curriculum\.py":
        "run, on toys: `tests/test_af1.py::test_its_curriculum_runs_from_converted_weights_to_chat`",
    r"tools/measure_network\.py": "run: `tests/bench/test_network.py::test_two_nodes_measure_each_other`",
    r"tools/bench\.py few-shot-claim":
        "what it calls, smaller: `tests/bench/test_few_shot_claim.py::"
        "test_the_whole_comparison_runs_and_is_not_made_again`",
    r"tools/bench\.py retrieval": "run, smaller: `tests/bench/test_retrieval.py::test_it_measures_every_index`",
    r"tools/bench\.py serve": "run, on a toy: `tests/bench/test_serve.py::test_a_short_crowd`",
    # data
    r"tools/make_skills\.py":
        "what it calls: `tests/prepare/test_skills.py`",
    r"tools/write_dialogues\.py": "what it calls: `tests/prepare/test_dialogues.py`; needs an endpoint",
    r"tools/filter_rows\.py":
        "what it calls: `tests/evaluate/test_clap_filter.py::test_rows_are_kept_by_the_fit_of_text_and_audio`",
    r"tools/build_retrieval\.py index":
        "run: `tests/evaluate/test_measure.py::test_one_command_measures_with_and_without_examples`",
    r"tools/build_retrieval\.py interleave": "what it calls: `tests/retrieval/test_interleave.py`",
    # evaluation, use
    r"tools/evaluate\.py .*--shots":
        "run: `tests/evaluate/test_measure.py::test_one_command_measures_with_and_without_examples`",
    r"tools/evaluate\.py .*--(rows|checkpoint)":
        "what it calls: `tests/evaluate/test_measure.py::test_any_rows_are_asked_about_beside_the_stages_own_results`",
    r"tools/chat\.py .*--microphone": "what it calls: `tests/serve/test_terminal.py`; needs a microphone",
    r"arecord ": "not run here: needs a microphone",
    r"tools/chat\.py": "run: `tests/tools/test_generate.py::test_one_question`, and by docs/examples/chat.ipynb",
    r"tools/generate\.py .*--requests":
        "run: `tests/tools/test_generate.py::test_a_file_on_every_number_of_ranks`",
    r"tools/generate\.py": "run: `tests/tools/test_generate.py::test_one_question`",
    r"tools/serve\.py runs": "run: `tests/tools/test_serve.py`",
    r"tools/serve\.py models:": "what it calls: `tests/release/test_named.py`",
    r"tools/export\.py": "run: `tests/release/test_export.py`, and by docs/examples/export.ipynb",
    r"pip install .*transformers": "not run here: needs the network",
    r"curl .*127\.0\.0\.1:8000": "run: `tests/test_serving_docs.py::test_ten_requests_have_the_same_answers_five_ways`",
    r"mlflow models serve|curl .*/invocations":
        "run, asked from Python: `tests/test_serving_docs.py::test_ten_requests_have_the_same_answers_five_ways`",
    r"mlflow ui": "the store that it shows: `tests/test_mlflow_ui.py`",
    r"^(evalscope|lmms-eval) ":
        "run by `make test-harnesses`: `tests/serve/test_lmms.py::test_both_harnesses_have_the_same_predictions`",
    r"tools/promote\.py": "run: `tests/release/test_commands.py::test_a_release_from_registration_to_rollback`",
    # weights
    r"tools/convert_checkpoint\.py .*--adapter":
        "what it calls: `tests/train/test_conversion.py::test_adapters_go_out_merged_or_for_peft`",
    r"tools/convert_checkpoint\.py .*--from runs/":
        "what it calls: `tests/train/test_conversion.py::test_in_and_out_again_gives_the_same_bits`",
    r"tools/convert_checkpoint\.py .*--from (models/opt|clapcap)":
        "run, on toys: `tests/test_af1.py::test_its_curriculum_runs_from_converted_weights_to_chat`",
    r"tools/convert_checkpoint\.py .*--from models/Qwen":
        "what it calls: `tests/train/test_conversion.py::test_a_converted_folder_starts_stages_in_another_layout`",
    r"tools/convert_checkpoint\.py .*safe_ckpt":
        "what it calls: `tests/train/test_conversion.py::test_a_released_model_becomes_a_checkpoint_of_all_its_parts`",
    # clusters
    r"^af-pipelines run": "run, on a toy: `tests/af_pipelines/test_run.py`",
    r"af-pipelines submit":
        "against a recorded server: `tests/af_pipelines/test_commands.py::test_from_submit_to_cancel`",
    r"^af-pipelines (serve|unserve|rollback)": "against a stand-in: `tests/af_pipelines/test_serving.py`",
    r"^af-pipelines smoke":
        "against a stand-in: `tests/af_pipelines/test_commands.py::test_smoke_measures_between_two_nodes`",
    r"^docker (?:build|push)": "not run here: needs Docker; linted: `tests/af_pipelines/test_images.py::test_linted`",
    r"kubectl |kustomize|curl localhost:8080":
        "not run here: needs a cluster; what it applies is rendered: `tests/af_pipelines/test_manifests.py`",
}  # fmt: skip
"""What a command says -> what runs it, or why nothing does; the first that fits."""

HEAD = """\
# Documented commands

Every command of the README and of these pages, and the test that runs it (with other names and sizes: a toy in place
of `runs/demo`). **What it calls**: the test runs the function behind the command, and
`tests/faults/test_entry_points.py` the command with broken arguments. That options exist is looked up in `--help` for
all of them (`tests/test_readme.py::test_commands_and_their_flags_exist`); `tests/test_documented.py` holds this list.

| command | on | held by |
| --- | --- | --- |
"""


def held_by(command: str) -> str:
    """Of the first pattern that fits; KeyError: nothing says what runs it."""
    for pattern, test in HELD.items():
        if re.search(pattern, command):
            return test
    raise KeyError(command)


def _quoted(word: str) -> str:
    """A word as a shell reads it, which runs what stands in ``$(…)``."""
    return word if word == "&&" else f'"{word}"' if "$(" in word else shlex.quote(word)


def documented() -> dict[str, list[Path]]:
    """Command -> the pages that show it."""
    found: dict[str, list[Path]] = {}
    for page in DOCS:
        if page.name != "commands.md":
            for words in commands(page):
                command = " ".join(map(_quoted, words)).replace(".venv/bin/", "")
                if not SHELL.match(command) and page not in found.setdefault(command, []):
                    found[command].append(page)
    return found


def page() -> str:
    rows = []
    for command, pages in sorted(documented().items()):
        links = [f"[{one.stem}]({one.relative_to(ROOT / 'docs')})" if one.is_relative_to(ROOT / "docs") else one.stem
                 for one in pages]  # fmt: skip
        shown = " ".join(command.split()).replace("|", "\\|")
        rows.append(f"| `{shown}` | {', '.join(links)} | {held_by(command)} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    print(page(), end="")
