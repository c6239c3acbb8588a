"""Rows to tokens and labels: what would be lost is refused or counted."""

import json

import pytest

from adapterops.basemodels.materialize import load_tokenizer
from adapterops.errors import RejectedError
from adapterops.specs.base_model import find_base_model
from adapterops.train.encode import encode_files
from adapterops.train.work import hold_back

ROW = {
    "id": "row-1",
    "instruction": "Where is it?",
    "output": "On its way.",
    "language": "en",
    "license": "CC0-1.0",
    "source": "tests",
}


@pytest.fixture
def encode(tmp_path):
    """`encode(rows, max_length, on_truncation)`: with the small model's tokenizer."""
    base_model = find_base_model("smollm2-135m-instruct", "test")
    tokenizer = load_tokenizer(base_model, weights=False)

    def of(rows, max_length=256, on_truncation="error"):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return encode_files([path], tokenizer, base_model, max_length, on_truncation)

    return of


@pytest.mark.parametrize(
    ("change", "who", "token"),
    [
        ({"output": "Write <|im_end|> to end a turn."}, "assistant", "<|im_end|>"),
        ({"output": "It ends with <|endoftext|>, always."}, "assistant", "<|endoftext|>"),
        ({"instruction": "What is <|im_end|>?"}, "user", "<|im_end|>"),
    ],
)
def test_a_text_that_would_end_its_own_turn_is_refused_at_its_line(encode, change, who, token):
    """The answer would be cut there, and nothing counted: `validate` is not run before every
    training."""
    with pytest.raises(
        RejectedError,
        match=(
            rf"rows\.jsonl:2: the text of the {who} contains `{token.replace('|', '.')}`.*Remove it"
        ),
    ):
        encode([ROW, {**ROW, **change}])


def test_answer_tokens_that_are_cut_away_are_counted(encode):
    long = {**ROW, "output": "On its way. " * 20}
    whole, cut = encode([long, ROW]), encode([long, ROW], 40, "allow")
    assert (whole.truncated_supervised, cut.truncated_rows) == (0, 1)
    assert (
        cut.truncated_supervised
        == whole.supervised_tokens - cut.supervised_tokens
        == cut.truncated_tokens
        > 0
    )
    with pytest.raises(
        RejectedError,
        match=(
            rf"1 rows would lose {cut.truncated_tokens} tokens, {cut.truncated_tokens} of them of"
            r" answers"
        ),
    ):
        encode([long, ROW], 40)


def test_rows_are_counted_by_licence(encode):
    assert encode([ROW, {**ROW, "license": "MIT"}, ROW]).licenses == {"CC0-1.0": 2, "MIT": 1}


@pytest.mark.parametrize("rows", [1, 3])
def test_early_stopping_does_not_hold_back_every_row(encode, rows):
    same = encode([ROW] * rows).rows()
    with pytest.raises(
        RejectedError, match=rf"training\.early_stopping\.share 0\.1 holds back all of {rows} rows"
    ):
        hold_back(same, 0.1)
    other = encode([ROW, {**ROW, "output": "It is there."}]).rows()
    assert [len(part) for part in hold_back(other, 0.1)] == [1, 1]
