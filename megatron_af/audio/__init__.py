"""The audio side: HTS-AT encoder, transformation layers, CLAP text tower and contrastive losses.

Plain torch modules, replicated on every rank; nothing in here knows how the language model is laid out.
"""
