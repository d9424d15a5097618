"""What the libraries below say at every start that tells nobody anything: each by name, with the reason.

    silence()        # before megatron-core is imported, from wherever: megatron_af/__init__.py does

Whatever is not listed here is still heard.
"""

import functools
import logging
import warnings

WARNINGS = {
    "Transformer Engine and Apex are not installed": "the layers of the CPU are torch's, as they should be",
    "Apex is not installed": "the same",
    "absl.logging is not installed": "megatron-core falls back to logging, which is meant",
    "full scope is deprecated": "megatron-core's own default of a setting for CUDA graphs, which nobody makes here",
    "MimoModelConfig is experimental": "a model that is imported and not used",
    "torch.distributed is disabled, unavailable or uninitialized": "frozen parts are read by each process for itself",
    "The argument order of load has been changed": "of megatron-core's call; both orders are of keywords",
}
"""Beginning of a warning's text -> why it is no news."""
LOGGED = {
    "torch.utils.cpp_extension": "No CUDA runtime is found",
    "megatron.core.dist_checkpointing.strategies.torch": "MCore's async save is deprecated",
}
"""Logger -> beginning of a line: the CPU is meant; the async strategy is chosen with the pinned version."""


@functools.cache
def silence() -> None:
    """Keep the listed ones out of this process's output."""
    for text in WARNINGS:
        warnings.filterwarnings("ignore", message=text)
    for logger, text in LOGGED.items():
        logging.getLogger(logger).addFilter(functools.partial(_is_news, text))


def _is_news(text: str, entry: logging.LogRecord) -> bool:
    return not entry.getMessage().startswith(text)
