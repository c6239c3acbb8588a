"""In large files only a sample of the rows is counted in tokens, and every row that could break a
limit."""

from __future__ import annotations

import pytest
import tokenizers
from data_rows import byte_model, english, judge, places, rows
from hypothesis import given
from hypothesis import strategies as st

from adapterops.basemodels.rendering import load_renderer
from adapterops.data import validate as validate_module
from adapterops.data.tokens import words_per_token
from adapterops.schemas import schema_problems
from adapterops.specs.base_model import find_base_model

TEXT = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.sampled_from(
            [
                "hello",
                " ",
                "\n\n",
                "환불",
                "　",
                " \u00a0",
                "123",
                "<|im_end|>",
                "é",
                "👩‍💻",
                "\t\t\t",
                "a b",
            ]
        ),
    )
).map("".join)


@pytest.fixture
def sampled(monkeypatch):
    """Every file is as if it were large."""
    monkeypatch.setattr(validate_module, "_COUNT_ALL_BYTES", 0)


@pytest.fixture(scope="module")
def renderer():
    return load_renderer(find_base_model("smollm2-135m-instruct", "test"))


def test_a_token_of_a_real_model_is_one_word(renderer):
    assert words_per_token(renderer.tokenizer) == 1


@given(text=TEXT)
def test_the_size_of_a_text_bounds_its_tokens(renderer, text):
    (count,) = renderer.count([text])
    assert len(text.split()) <= count <= len(text.encode())


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: setattr(tokenizer, "normalizer", tokenizers.normalizers.NFKC()),
        lambda tokenizer: setattr(tokenizer, "normalizer", tokenizers.normalizers.Prepend("▁")),
        lambda tokenizer: setattr(
            tokenizer, "pre_tokenizer", tokenizers.pre_tokenizers.Metaspace()
        ),
        lambda tokenizer: setattr(
            tokenizer, "pre_tokenizer", tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
        ),
        lambda tokenizer: setattr(tokenizer, "model", tokenizers.models.Unigram([("a", 0.0)])),
    ],
    ids=["NFKC", "Prepend", "Metaspace", "prefix space", "Unigram"],
)
def test_where_it_does_not_every_row_is_counted(tmp_path, monkeypatch, change):
    tokenizer = load_renderer(byte_model(tmp_path / "model", monkeypatch)).tokenizer
    assert words_per_token(tokenizer) == 1
    change(tokenizer)
    assert words_per_token(tokenizer) is None


def test_a_token_may_span_several_words():
    pieces = ["a", "b", "Ġ", "aĠ", "aĠb"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {piece: place for place, piece in enumerate(pieces)}, [("a", "Ġ"), ("aĠ", "b")]
        )
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    assert words_per_token(tokenizer) == 2


@pytest.mark.parametrize("longest", [None, 400, 100])
def test_sampling_finds_what_counting_all_finds(tmp_path, monkeypatch, sampled, longest):
    model = byte_model(tmp_path / "model", monkeypatch)
    values = [
        *rows(40),
        english(41, instruction="short"),
        english(42, output="no"),
        english(43, instruction="a " * 1025),
        english(44, output="b " * 2049),
        english(45, instruction="word " * 50, output="word " * 30),
        english(46, instruction="=" * 12, output="#" * 6),
    ]
    few = judge(tmp_path, values, base_model=model, max_length=longest)
    monkeypatch.undo()
    byte_model(tmp_path / "model", monkeypatch)
    every = judge(tmp_path, values, base_model=model, max_length=longest)
    for code in ("E201", "E202", "E203"):
        assert places(few, code) == places(every, code)
    assert places(every, "E201") == [41, 43]
    assert places(every, "E202") == [42, 44]


def test_the_report_says_from_how_many_rows_it_estimates(renderer, tmp_path, sampled):
    values = rows(400)
    report = judge(tmp_path, values, base_model=find_base_model("smollm2-135m-instruct", "test"))
    tokens = report.document["files"][0]["row_tokens"]
    assert schema_problems(report.document, "data_report") == []
    assert 20 < tokens["sampled_rows"] < 90
    assert tokens["total"] == pytest.approx(tokens["mean"] * 400, abs=20)
    words = sum(renderer.count([f"{row['instruction']}\n{row['output']}" for row in values]))
    assert tokens["total"] > words
