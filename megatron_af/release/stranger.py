"""Somebody else's process: it loads an exported folder where neither this project nor megatron-core can be imported.

The trial of an export (``export_trial.py``) runs this text by ``python -P -c``; it reads chats as JSON from its input
and prints the answers.
"""

import json
import sys
from collections.abc import Sequence
from types import ModuleType

HIDDEN = ("megatron_af", "megatron", "dali_pipes", "nvidia", "transformer_engine")


class Hidden:
    """Makes what is installed here look as if it were not."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if name.partition(".")[0] in HIDDEN:
            raise ImportError(f"{name} is not there for users of an exported model")


def main() -> None:
    sys.meta_path.insert(0, Hidden())
    import torch
    from transformers import AutoModelForCausalLM, AutoProcessor

    folder, new = sys.argv[1], int(sys.argv[2])
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).to(device)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    chats = json.load(sys.stdin)
    inputs = processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=True, return_dict=True)
    answers = model.generate(**inputs.to(device), max_new_tokens=new)[:, inputs["input_ids"].shape[1] :]
    print(json.dumps([text.strip() for text in processor.batch_decode(answers, skip_special_tokens=True)]))


if __name__ == "__main__":
    main()
