"""What each architecture's checkpoint tensors are, derived from transformers' own model code."""
