"""The code that an exported model carries with it: plain torch and transformers, for processes without this project.

``megatron_af/release/export.py`` copies these files beside the weights; nothing here imports anything of this project.
"""
