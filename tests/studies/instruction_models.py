"""Small instruction models for tests: random weights, a tokenizer with markers, a chat template."""

import json

import pytest

TEXT = "It was the best of times, it was the worst of times. " * 12
TURN = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SYSTEM = (
  "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}"
  "{% endif %}"
)
JINJA = SYSTEM + TURN
MARKERS = ["<begin>", "<|im_end|>", "<mask>", "<|im_start|>"]
V = 300  # rows of the table; fewer tokens


def tokenizer_text(library):
  """tokenizer.json of a byte-level BPE."""
  made = library.Tokenizer(library.models.BPE())
  made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = library.decoders.ByteLevel()
  trainer = library.trainers.BpeTrainer(
    vocab_size=290,
    special_tokens=MARKERS,
    initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  made.train_from_iterator([TEXT], trainer)
  return made.to_str()


def folder_of_weights(place, kind):
  """(folder with random weights of a family, config and tokenizer; tensors; config)."""
  import tokenizers as library
  from safetensors.numpy import save_file

  from tests.model.pretrained import reference

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(reference, "V", V)
    if kind == "llada":
      shapes, config = reference.llada_shapes(), reference.llada_config()
      config |= {"mask_token_id": 2, "embedding_size": V}
    else:
      shapes, config = reference.llama_shapes(kind), reference.llama_config(kind)
    tensors = reference.random_tensors(shapes)
  config |= {"bos_token_id": 0, "eos_token_id": 1}
  folder = place / kind
  folder.mkdir(parents=True)
  save_file(tensors, folder / "model.safetensors")
  (folder / "config.json").write_text(json.dumps(config))
  (folder / "tokenizer.json").write_text(tokenizer_text(library))
  (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": JINJA}))
  return folder, tensors, config


def workdir_of(place, kind):
  """(workdir of a converted random model of rows of 64 tokens, tensors, config of the weights)."""
  from configs import mdlm
  from diffusion_text.studies.convert import convert

  folder, tensors, said = folder_of_weights(place, kind)
  text = place / "text"
  text.mkdir(exist_ok=True)
  for split in ("train", "validation", "test"):
    (text / f"{split}.txt").write_text(TEXT * (4 if split == "train" else 1))
  config = mdlm.get_config("micro")
  config.data.update({"corpus": "folder", "path": str(text), "cache_dir": str(place / "cache")})
  config.data.length = 64
  config.train.batch_size = config.evaluate.batch_size = 8
  convert(str(folder), str(place / f"run_{kind}"), config, keep_system=False, frozen=True)
  return str(place / f"run_{kind}"), tensors, said
