"""The model card: one section of ours, and the user's own words."""

from huggingface_hub import ModelCard

from tests.support.saving import train_two_steps


def test_the_section_of_the_card_is_replaced_and_the_users_words_stay(tmp_path):
    trainer = train_two_steps(tmp_path / "run")
    path = tmp_path / "end" / "README.md"
    path.parent.mkdir()
    path.write_text("---\nlicense: mit\ntags:\n- mine\n---\n\n# My model\n\nBefore.\n")
    trainer.save_model(path.parent)
    path.write_text(path.read_text() + "\nAfter.\n")
    once = path.read_text()
    trainer.save_model(path.parent)
    trainer.save_model(path.parent)
    assert path.read_text().split() == once.split()
    card = ModelCard.load(path)
    assert card.data.license == "mit" and card.data.tags == ["mine", "nxm-hf"]
    assert card.text.count("## Sparsity") == 1
    assert card.text.index("Before.") < card.text.index("## Sparsity") < card.text.index("After.")
