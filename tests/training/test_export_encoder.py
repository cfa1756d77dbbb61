"""`training export-encoder` of small BERTs, and the shipped encoder: without torch, what transformers gives."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from models import encoder_files
from models.encoder_files import read_spec
from models.text import load_encoder
from training.cli import main

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "bird", "with", "wing", "##s", "long", "tail"]
TEXTS = ["a red bird", "long wings", "", "a bird with a long red tail", "a zebra", "red " * 40]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT of 16 positions in the layout of transformers, its weights nowhere zero."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    model = BertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A test\n")
    return folder


def from_transformers(folder: Path, text: str, max_tokens: int) -> NDArray[np.float32]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    ids = torch.tensor([tokenizer.encode(text).ids])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        states = AutoModel.from_pretrained(folder).eval()(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    found: NDArray[np.float32] = states[0].numpy()
    return found


def check_against_transformers(name: str, encoders: Path, folder: Path, texts: list[str]) -> None:
    encoder = load_encoder(name, folder, encoders=encoders)
    for text, found in zip(texts, encoder.encode(texts), strict=True):
        expected = from_transformers(folder, text, encoder.spec.max_tokens)
        assert found.tokens.shape == expected.shape
        assert np.abs(found.tokens - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_shipped_encoder_gives_what_transformers_gives() -> None:
    folder = encoder_files.find("all-minilm-l6-v2")
    texts = ["zebra", "A black and white striped animal of the African plains.", "stripes " * 400, "斑马 🦓 naïve"]
    check_against_transformers("all-minilm-l6-v2", encoder_files.ENCODERS, folder, texts)


def test_the_shipped_tokenizer_cuts_as_transformers_does() -> None:
    folder = encoder_files.find("all-minilm-l6-v2")
    encoder, theirs = load_encoder("all-minilm-l6-v2", folder), AutoTokenizer.from_pretrained(folder)
    for text in ("zebra", "A Zebra's mane — upright!", "stripes " * 400):
        n_tokens = len(theirs(text, truncation=True, max_length=256)["input_ids"])
        assert encoder.encode([text])[0].tokens.shape[0] == n_tokens


def test_any_bert_can_be_exported(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "encoders" / "small"
    assert main(["export-encoder", str(bert), "--to", str(to)]) == 0
    assert "24-d, 16 tokens" in capsys.readouterr().out
    spec = read_spec("small", to.parent)
    assert (spec.name, spec.licence, spec.dim, spec.max_tokens, spec.tensors) == ("small", "mit", 24, 16, {})
    assert (to / "graph.onnx").stat().st_size < 100_000
    check_against_transformers("small", to.parent, bert, TEXTS)


def test_tensors_by_their_old_names_are_found_and_a_limit_is_kept(bert: Path, tmp_path: Path) -> None:
    """As BERT-base has them: below ``bert.``, LayerNorm's as gamma and beta; and as sentence-transformers cuts."""
    folder, to = tmp_path / "old", tmp_path / "encoders" / "old"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "README.md"):
        (folder / name).write_bytes((bert / name).read_bytes())
    tensors = load_file(bert / "model.safetensors")
    old = {f"bert.{n.replace('LayerNorm.weight', 'LayerNorm.gamma')}": t for n, t in tensors.items()}
    old = {n.replace("LayerNorm.bias", "LayerNorm.beta"): t for n, t in old.items()}
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8}))
    assert main(["export-encoder", str(folder), "--to", str(to), "--licence", "apache-2.0"]) == 0
    spec, encoder = read_spec("old", to.parent), load_encoder("old", folder, encoders=to.parent)
    assert spec.tensors["embeddings.LayerNorm.weight"] == "bert.embeddings.LayerNorm.gamma"
    assert (spec.max_tokens, spec.licence) == (8, "apache-2.0")
    short, cut = encoder.encode([TEXTS[0], TEXTS[5]])
    np.testing.assert_allclose(short.tokens, from_transformers(bert, TEXTS[0], 8), atol=1e-4)
    assert cut.tokens.shape == (8, 24)
    assert cut.truncated


def test_a_model_without_its_files_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "half").mkdir()
    assert main(["export-encoder", str(tmp_path / "half"), "--to", str(tmp_path / "encoders" / "half")]) == 2
    assert "lacks model.safetensors, tokenizer.json, config.json" in capsys.readouterr().err
    assert not (tmp_path / "encoders").exists()


def test_a_licence_that_is_not_stated_is_asked_for(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_bytes((bert / name).read_bytes())
    assert main(["export-encoder", str(tmp_path), "--to", str(tmp_path / "to")]) == 2
    assert "--licence" in capsys.readouterr().err
