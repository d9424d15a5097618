"""Audio Flamingo on megatron-core: training, evaluation and release. Start reading at ``tools/pretrain_af.py``."""
