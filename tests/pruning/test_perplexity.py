"""Perplexity against a loop over single tokens, and what `nxm eval` and `prune --eval` say of it."""

import json
import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from nxm_hf import perplexity, prune
from nxm_hf.cli.main import main
from nxm_hf.pruning.perplexity import BATCH_TOKENS
from nxm_hf.pruning.text_rows import joined_text
from tests.support.models import make_bert, make_texts, make_tokenizer

TEXT = " ".join(make_texts(8))
SHAPE = dict(vocab_size=50, pad_token_id=0, bos_token_id=1, eos_token_id=2)


def make_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=24, **SHAPE)).eval()


def make_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    layers = dict(num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64)
    return LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=32, **layers, **SHAPE)).eval()


@torch.no_grad()
def loss_token_by_token(model, ids: list[int], context: int, stride: int) -> tuple[float, int]:
    """Return the mean of -log p, and of how many tokens: each from the start of the first window that holds it."""
    losses = []
    for position in range(1, len(ids)):
        window = next(begin for begin in range(0, len(ids), stride) if begin <= position < begin + context)
        if position == window:
            continue  # it has nothing before it
        logits = model(torch.tensor([ids[window:position]])).logits[0, -1].double()
        losses.append(float(logits.logsumexp(-1) - logits[ids[position]]))
    return sum(losses) / len(losses), len(losses)


@pytest.mark.parametrize("context, stride", [(12, 12), (12, 5), (12, 1), (24, 7), (2, 2), (24, 24)])
@pytest.mark.parametrize("make", [make_gpt2, make_llama])
def test_perplexity_is_that_of_a_loop_over_tokens(make, context, stride):
    model, tokenizer = make(), make_tokenizer()
    ids = tokenizer(TEXT)["input_ids"]
    loss, tokens = loss_token_by_token(model, ids, context, stride)
    found = perplexity(model, [TEXT], tokenizer, context=context, stride=stride)
    assert found.tokens == tokens and (found.context, found.stride) == (context, stride)
    assert found.loss == pytest.approx(loss, abs=1e-5)
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-5)


def test_windows_that_are_read_together_change_nothing(monkeypatch):
    model, tokenizer = make_gpt2(), make_tokenizer()
    together = perplexity(model, [TEXT], tokenizer, context=8, stride=3)
    monkeypatch.setattr("nxm_hf.pruning.perplexity.BATCH_TOKENS", 8)
    alone = perplexity(model, [TEXT], tokenizer, context=8, stride=3)
    assert BATCH_TOKENS > 8 and alone.tokens == together.tokens == len(tokenizer(TEXT)["input_ids"]) - 1
    assert alone.loss == pytest.approx(together.loss, abs=1e-6)


def test_a_window_is_as_long_as_the_model_reads_by_default():
    found = perplexity(make_gpt2(), [TEXT], make_tokenizer())
    assert (found.context, found.stride) == (24, 24)


@pytest.mark.parametrize(
    "model, text, options, message",
    [
        (make_bert(), TEXT, {}, "predicts no next token"),
        (make_gpt2(), TEXT, {"context": 8, "stride": 9}, "context=8 and stride=9 leave tokens out"),
        (make_gpt2(), TEXT, {"context": 1}, "a context of at least 2"),
    ],
)
def test_what_has_no_perplexity_is_refused(model, text, options, message):
    with pytest.raises(ValueError, match=message):
        perplexity(model, [text], make_tokenizer(), **options)


def test_a_text_of_one_token_is_refused():
    with pytest.raises(ValueError, match="has 1 tokens"):
        perplexity(make_gpt2(), ["w1"], make_tokenizer(special=False))


def test_rows_are_joined_as_wikitext_is_and_a_text_file_is_read_as_it_is(tmp_path):
    rows = [{"text": " = A = \n"}, {"text": ""}, {"text": "B"}]
    assert joined_text(rows) == " = A = \n\n\n\n\nB"
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert joined_text(tmp_path / "rows.jsonl") == joined_text(rows)
    (tmp_path / "text.txt").write_text("One.\n\nTwo.\n")
    assert joined_text(tmp_path / "text.txt") == "One.\n\nTwo.\n"
    assert joined_text(["One.", "Two."]) == "One.\n\nTwo."


def test_prune_shows_the_perplexity_of_a_language_model_before_and_after():
    dense, model, tokenizer = make_gpt2(), make_gpt2(), make_tokenizer()
    result = prune(model, "2:4", evaluation=[TEXT], tokenizer=tokenizer)
    before, after = (perplexity(x, [TEXT], tokenizer).perplexity for x in (dense, model))
    assert result.scores == {"perplexity": (before, after)} and before != after
    assert f"on {result.rows} tokens" in str(result)


def test_nxm_eval_prints_the_perplexity_of_a_directory(tmp_path, capsys):
    model, tokenizer = make_gpt2(), make_tokenizer()
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT)
    words = ["eval", str(tmp_path / "model"), "--text", str(tmp_path / "text.txt"), "--context", "8", "--stride", "4"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == perplexity(model, TEXT.splitlines(), tokenizer, context=8, stride=4).to_dict()
    assert main(words) == 0
    assert capsys.readouterr().out.startswith(f"perplexity {found['perplexity']:.4f} (loss ")
    assert main([*words[:2], "--text", "absent.txt"]) == 2
    assert "no file absent.txt" in capsys.readouterr().err


@pytest.fixture
def gpt2_and_text(tmp_path):
    """The arguments of `nxm eval` for a saved model with its tokenizer, and a file of text."""
    make_gpt2().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT)
    return ["eval", str(tmp_path / "model"), "--text", str(tmp_path / "text.txt")]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--tokenizer", "./nope"], "./nope is neither a directory with a tokenizer nor one on the Hub"),
        (["--columns", "title"], "The texts have no columns, and got columns=['title']. Leave columns out."),
    ],
)
def test_a_tokenizer_or_a_column_that_is_not_there_is_named(words, answer, gpt2_and_text, capsys):
    capsys.readouterr()
    assert main([*gpt2_and_text, *words]) == 2
    assert answer in capsys.readouterr().err


def test_a_tokenizer_of_another_vocabulary_is_refused():
    torch.manual_seed(0)
    small = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=24, **{**SHAPE, "vocab_size": 20}))
    with pytest.raises(ValueError, match=r"the model's vocabulary has 20 entries"):
        perplexity(small, [TEXT], make_tokenizer())
