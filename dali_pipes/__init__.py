"""Sound to mel windows through NVIDIA DALI; knows audio and windows, nothing of models."""
