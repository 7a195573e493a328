"""CLIP: loading, the text tower, prompts, and the heads that methods share."""
