"""From text to batches: corpora → tokenizers → token_arrays → packing → pipeline; prompts for sampling.

Nothing is imported here, and the heavy packages (grain, sentencepiece, pyarrow, tensorflow-datasets) only where they are used.
"""
