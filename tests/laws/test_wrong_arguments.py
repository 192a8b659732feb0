"""Arguments of a wrong kind, in a wrong order or spelling: each answer is one line that says what to write."""

import pytest
import torch

import nxm_hf
from nxm_hf import (
    NxMCallback,
    NxMConfig,
    NxMTrainer,
    attach,
    merge_adapter,
    permute,
    perplexity,
    prune,
    rewind,
    save_packed,
    to_inference,
    verify,
)
from tests.support.models import make_arguments, make_bert, make_model, make_rows, make_texts, make_tokenizer
from tests.support.saved_models import make_sparse

PATTERNS = {
    "2/4": "Write '2:4'.",
    "2-4": "Write '2:4'.",
    "2 of 4": "Write '2:4'.",
    "2of4": "Write '2:4'.",
    "4/2": "Write '2:4'.",
    "50%": "Write 'unstructured:0.5' to keep half",
    "0.5": "Write 'unstructured:0.5' to keep half",
    "0:4": "Write '2:4' to keep 2 of every 4",
    "4:2": "Write '2:4'.",
}
FILES = {
    "comma.json": ('{"recipe": "admm", "pattern": "2:4",}', "comma.json cannot be read"),
    "tab.yaml": ("recipe: admm\nsettings:\n\trho: 1\n", "tab.yaml cannot be read"),
    "list.yaml": ("- admm\n- 2:4\n", 'must be a mapping such as "recipe: admm"'),
    "empty.yaml": ("", 'must be a mapping such as "recipe: admm"'),
    "config.toml": ("recipe = 'ste'", "its name must end in .json, .yaml, .yml."),
}
CONFIGS = {
    "a pattern in the place of the recipe": (lambda: NxMConfig("2:4"), "Write pattern='2:4'."),
    "recipe and pattern exchanged": (lambda: NxMConfig("2:4", "admm"), "Write pattern='2:4'."),
    "a recipe as the pattern": (lambda: NxMConfig(pattern="admm"), "Write recipe='admm'."),
    "a number as the pattern": (lambda: NxMConfig(pattern=124), "Write '2:4'. YAML needs the quotes"),
    "a dict as include": (lambda: NxMConfig(include={"query": True}), 'Write include=["ffn"].'),
    "a number as exclude": (lambda: NxMConfig(exclude=3), 'Write exclude=["ffn"].'),
}
PRUNINGS = {
    "the pattern first": (lambda: prune("2:4", make_bert()), "Write prune(model, '2:4')."),
    "a method as the pattern": (lambda: prune(make_bert(), "sparsegpt"), "Write method='sparsegpt'."),
    "a density": (lambda: prune(make_bert(), sparsity=0.5), "prune has no sparsity=; write pattern=."),
    "a state dict": (lambda: prune(make_bert().state_dict()), "A model is needed, and got a OrderedDict."),
    "the name of a tokenizer": (
        lambda: prune(make_bert(), "2:4", "wanda", make_texts(), "bert"),
        "Write tokenizer=AutoTokenizer.from_pretrained('bert').",
    ),
    "one tensor": (
        lambda: prune(make_bert(), "2:4", "wanda", torch.ones(4, 8).long()),
        'Write calibration=[{"input_ids": ids}].',
    ),
    "one batch": (
        lambda: prune(make_bert(), "2:4", "wanda", {"input_ids": torch.ones(4, 8).long()}),
        'Write calibration=[{"input_ids": ids}].',
    ),
    "numbers": (
        lambda: prune(make_bert(), "2:4", "wanda", [1, 2], make_tokenizer()),
        "and holds 1. Write calibration=",
    ),
    "one text": (
        lambda: prune(make_bert(), "2:4", "wanda", "w1 w2 w3", make_tokenizer()),
        "If it is a text, write ['w1 w2 w3'].",
    ),
    "columns of a list of texts": (
        lambda: prune(make_bert(), "2:4", "wanda", make_texts(), make_tokenizer(), columns="text"),
        "Leave columns out.",
    ),
}
MODELS = {
    "verify": lambda: verify(3),
    "save_packed": lambda: save_packed("out", make_bert()),
    "to_inference": lambda: to_inference("dir"),
    "permute": lambda: permute("dir", "2:4"),
    "merge_adapter": lambda: merge_adapter("dir"),
    "NxMTrainer": lambda: NxMTrainer("dir", sparsity="asp"),
    "attach": lambda: attach("dir", torch.optim.SGD(make_bert().parameters()), "asp", total_steps=1),
}


def _answer(mistake) -> str:
    with pytest.raises((ValueError, TypeError, OSError)) as raised:
        mistake()
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("text", PATTERNS)
def test_another_spelling_of_a_pattern_is_answered_with_the_right_one(text):
    mistakes = [lambda: NxMConfig(pattern=text), lambda: NxMConfig.from_any(text), lambda: prune(make_bert(), text)]
    for mistake in mistakes:
        assert _answer(mistake).count(PATTERNS[text]) == 1


@pytest.mark.parametrize("name", FILES)
def test_a_config_file_with_a_wrong_form_is_named(name, tmp_path):
    text, answer = FILES[name]
    (tmp_path / name).write_text(text)
    for sparsity in (str(tmp_path / name), tmp_path / name):
        assert answer in _answer(lambda sparsity=sparsity: NxMCallback(sparsity))


def test_yaml_needs_no_quotes_around_patterns_and_small_numbers(tmp_path):
    (tmp_path / "a.yaml").write_text("recipe: sr-ste\npattern: {ffn: 2:4, default: 4:8}\nsettings: {decay: 1e-4}\n")
    config = NxMConfig("sr-ste", {"ffn": "2:4", "default": "4:8"}, {"decay": 1e-4})
    assert NxMConfig.from_any(tmp_path / "a.yaml") == config
    (tmp_path / "b.yaml").write_text("recipe: admm\nsettings: {rho: 1, steps: 10}\nwarmup: .5\nsettle: 0.25\n")
    assert NxMConfig.from_any(tmp_path / "b.yaml") == NxMConfig(
        "admm", "2:4", {"rho": 1, "steps": 10}, warmup=0.5, settle=0.25
    )


def test_the_directory_of_a_model_is_no_config(tmp_path):
    for directory in (tmp_path, str(tmp_path)):
        answer = _answer(lambda directory=directory: NxMConfig.from_any(directory))
        assert f"Write sparsity=NxMConfig.from_pretrained({str(tmp_path)!r})" in answer


def test_a_directory_with_the_name_of_a_recipe_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "admm").mkdir()
    assert NxMConfig.from_any("admm") == NxMConfig("admm")


@pytest.mark.parametrize("case", [*CONFIGS, *PRUNINGS])
def test_a_wrong_argument_is_answered_with_what_to_write(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistake, answer = {**CONFIGS, **PRUNINGS}[case]
    assert _answer(mistake).count(answer) == 1


@pytest.mark.parametrize("name", MODELS)
def test_anything_but_a_model_is_refused_by_all_that_take_one(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = _answer(MODELS[name])
    assert answer.startswith("A model is needed") and answer.endswith(("from_pretrained.", "'dir'."))
    assert not list(tmp_path.iterdir())


def test_a_trainer_is_no_model(tmp_path):
    trainer = NxMTrainer(make_bert(), make_arguments(tmp_path), train_dataset=make_rows(), sparsity="asp")
    assert _answer(lambda: prune(trainer)) == "A model is needed, and got a NxMTrainer. Write its .model."


def test_a_model_in_the_place_of_the_optimizer_is_named():
    model = make_bert()
    swapped = lambda: attach(torch.optim.SGD(model.parameters()), model, "asp", total_steps=1)  # noqa: E731
    assert "got BertForSequenceClassification as the optimizer. Write attach(model, " in _answer(swapped)
    assert "Write attach(model, " in _answer(lambda: attach(model, torch.optim.SGD, "asp", total_steps=1))


def test_rewind_takes_directories_alone(tmp_path):
    assert "Write rewind(TRAINED_DIR, CHECKPOINT_DIR, OUT)." in _answer(lambda: rewind(make_bert(), "a", tmp_path))
    assert "Write rewind(TRAINED_DIR, CHECKPOINT_DIR, OUT)." in _answer(lambda: rewind("a", make_bert(), tmp_path))


def test_a_teacher_of_another_task_is_refused_before_training(tmp_path):
    answer = _answer(
        lambda: NxMTrainer(make_bert(), make_arguments(tmp_path), sparsity="asp", teacher=make_model("llama"))
    )
    assert "The teacher is a LlamaForCausalLM and the student a BertForSequenceClassification" in answer


def test_a_model_is_not_saved_into_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    trainer = NxMTrainer(make_bert(), make_arguments(tmp_path, max_steps=1), train_dataset=make_rows(), sparsity="asp")
    trainer.train()
    for folder in (tmp_path / "file", tmp_path / "file/model"):
        answer = _answer(lambda folder=folder: trainer.save_model(str(folder)))
        assert f"{tmp_path / 'file'} is a file, so nothing can be written into it. Name another" in answer
    make_sparse(make_bert(), tmp_path / "sparse")
    model = make_bert().from_pretrained(tmp_path / "sparse")
    assert "Name another directory." in _answer(lambda: save_packed(model, tmp_path / "file/packed"))
    assert (tmp_path / "file").read_text() == "mine"


def test_no_checkpoint_is_said_in_the_words_of_trainer(tmp_path):
    trainer = NxMTrainer(make_bert(), make_arguments(tmp_path), train_dataset=make_rows(), sparsity="ste")
    answer = _answer(lambda: trainer.train(resume_from_checkpoint=True))
    assert answer.startswith(f"No valid checkpoint found in output directory ({tmp_path}).")


def test_a_context_beyond_the_positions_of_a_model_is_refused():
    model, tokenizer = make_model("gpt2"), make_tokenizer()
    assert "context=17 is more than the 16 tokens that the model reads. Write 16." in _answer(
        lambda: perplexity(model, make_texts(), tokenizer, context=17)
    )
    assert perplexity(model, make_texts(), tokenizer, context=16).context == 16


def test_an_empty_text_has_no_perplexity(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    answer = _answer(lambda: perplexity(make_model("gpt2"), tmp_path / "empty.txt", make_tokenizer()))
    assert answer == f"{tmp_path / 'empty.txt'} is empty. Name a file that holds text."


@pytest.mark.parametrize("name", ["NxmTrainer", "NMXConfig", "prun"])
def test_a_name_near_a_public_one_is_answered_with_it(name):
    with pytest.raises(AttributeError, match=r"Did you mean (NxMTrainer|NxMConfig|prune)\?"):
        getattr(nxm_hf, name)
