"""A process that has neither this project nor megatron-core, and what it does with an exported folder.

    found = elsewhere(folder, "found = {'answers': answers(chats)}", chats=[…])

The program finds ``model``, ``processor`` and the named values, and leaves what it found in ``found``.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = """
import json, sys

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("megatron", "megatron_af", "dali_pipes", "nvidia", "transformer_engine"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Nowhere())
import torch
from transformers import AutoModelForCausalLM, AutoProcessor

torch.set_num_threads(1)
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)

def inputs_of(chats):
    return processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=True, return_dict=True)

def answers(chats, **settings):
    inputs = inputs_of(chats)
    ids = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1]:]
    return [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]

globals().update(json.loads(sys.stdin.read()))
"""
END = """
assert not any(name.partition(".")[0] in ("megatron", "megatron_af", "dali_pipes") for name in sys.modules)
print(json.dumps(found))
"""


def elsewhere(folder: Path, program: str, **values: Any) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program + END, str(folder)],
        input=json.dumps(values),
        cwd=folder.parent,
        # Code that was loaded before is not taken for this folder's.
        env={
            "PATH": os.environ["PATH"],
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(folder.parent / "modules"),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
