"""From text to batches: corpora → tokenizers → token_arrays → packing → pipeline.

`prompts` makes batches for sampling. This file imports nothing, and the heavy packages (grain,
sentencepiece, pyarrow, tensorflow-datasets) are imported only where they are used.
"""
