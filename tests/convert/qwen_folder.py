"""A folder of Qwen2.5 as Hugging Face lays it out, of toy size."""

from pathlib import Path

import torch

from tests.decoder.toy import plain_rows, roughen, toy_config


def write_folder(folder: Path, *, tied: bool) -> Path:
    """A small random Qwen2 in several safetensors files; also its logits for ``plain_rows()``."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(3)
    lm = toy_config().model.lm
    model = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=lm.hidden,
            num_hidden_layers=lm.layers,
            num_attention_heads=lm.heads,
            num_key_value_heads=lm.kv_heads,
            intermediate_size=lm.ffn,
            vocab_size=lm.vocab,
            tie_word_embeddings=tied,
            rope_theta=lm.rope_base,
            rms_norm_eps=lm.norm_eps,
            max_position_embeddings=lm.max_positions,
            initializer_range=0.2,
            use_sliding_window=False,
        )
    ).float()
    roughen(model)
    with torch.no_grad():
        logits = model.eval()(input_ids=plain_rows().ids_BS).logits
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    torch.save(logits, folder / "logits.pt")
    return folder
