"""ROUGE-L with tokenizer ko-syl-v2: right for Korean, and the default's scores on ASCII text."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from adapterops.evaluate.rouge import repetition, rouge_l, shuffled_floor, tokenize

DEFAULT = rouge_scorer.RougeScorer(["rougeL"])


def test_identical_korean_sentences_score_one_where_the_default_scores_zero():
    sentence = "환불은 영업일 기준 사흘 안에 처리됩니다."
    assert rouge_l(sentence, sentence) == 1.0
    assert DEFAULT.score(sentence, sentence)["rougeL"].fmeasure == 0.0


def test_unrelated_korean_sentences_that_share_digits_score_low_where_the_default_scores_one():
    reference, answer = (
        "배송은 3일 걸리고 5000원입니다.",
        "회원 등급은 3단계이며 5000점이 필요해요.",
    )
    assert rouge_l(reference, answer) < 0.5
    assert DEFAULT.score(reference, answer)["rougeL"].fmeasure == 1.0


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_the_unicode_form_of_an_answer_does_not_matter(form):
    sentence = "교환 접수가 완료되었습니다"
    assert rouge_l(sentence, unicodedata.normalize(form, sentence)) == 1.0


def test_a_changed_particle_costs_one_syllable_and_not_the_whole_word():
    assert 0.8 < rouge_l("택배를 보냈습니다", "택배가 보냈습니다") < 1.0


def test_hangul_is_split_into_syllables_and_everything_else_into_runs():
    assert tokenize("환불 A/S는 LF-2071, 東京!") == [
        "환",
        "불",
        "a",
        "s",
        "는",
        "lf",
        "2071",
        "東",
        "京",
    ]


@given(st.text(st.characters(max_codepoint=127)), st.text(st.characters(max_codepoint=127)))
def test_ascii_text_scores_as_with_the_default_tokenizer(reference, answer):
    assert rouge_l(reference, answer) == pytest.approx(
        DEFAULT.score(reference, answer)["rougeL"].fmeasure
    )


@given(st.text("가나다라 환불은ab1.", max_size=40), st.text("가나다라 환불은ab1.", max_size=40))
def test_korean_text_scores_as_its_syllables_do_written_in_latin(reference, answer):
    def latin(text):
        return " ".join(
            f"x{ord(token[0])}{token}" if token.isascii() else f"x{ord(token)}"
            for token in tokenize(text)
        )

    assert rouge_l(reference, answer) == pytest.approx(
        DEFAULT.score(latin(reference), latin(answer))["rougeL"].fmeasure
    )


def test_the_floor_is_what_answers_score_against_the_references_of_other_rows():
    pairs = [("환불은 사흘", "환불은 사흘"), ("교환은 나흘", "교환은 나흘"), ("abc def", "abc def")]
    assert shuffled_floor(pairs, seed=1) < 0.5
    assert (
        shuffled_floor([("같은 답", "같은 답")] * 5, seed=1) == 1.0
    )  # an adapter that always says the same gains nothing from it
    assert shuffled_floor(pairs[:1], seed=1) is None


def test_repetition_is_the_share_of_repeated_four_grams():
    assert repetition("the parcel leaves tomorrow morning at nine") == 0
    assert repetition("네 네 네 네 네 네 네 네 네 네") > 0.8
    assert repetition("Yes.") == 0


def test_an_empty_answer_scores_zero():
    assert rouge_l("The lamp ships on Monday.", "") == 0.0


@pytest.mark.parametrize(
    "unseen", ["\u200b", "\u200d", "\u00ad", "\ufeff", "\u2060", "\u202e", "\ufe0f"]
)
def test_what_nobody_sees_splits_no_word_and_is_none(unseen):
    assert tokenize(f"ref{unseen}und 환{unseen}불") == ["refund", "환", "불"]
    assert rouge_l("the refund is on its way", f"the ref{unseen}und is on its way") == 1.0


@pytest.mark.parametrize("mark", ["!", "😀", "👍🏽", "-", "_", ". ", "!?", "\u200b", "。"])
def test_an_answer_that_ends_in_endless_marks_repeats_itself(mark):
    assert repetition("Your parcel is on its way" + mark * 200) > 0.9


@pytest.mark.parametrize(
    "answer",
    [
        '{"order": "LF-1", "items": [{"name": "cup"}, {"name": "lamp"}], "note": null}',
        "Thank you!!! 😀😀😀 We will call you... soon :-)",
        "- one\n- two\n- three\n- four\n- five\n- six\n- seven",
        'Where? There! (Really?) "Yes." -- and so on...',
    ],
)
def test_ordinary_punctuation_is_no_repetition(answer):
    assert repetition(answer) == 0.0


def test_endless_marks_are_found_in_linear_time():
    assert repetition("! " * 200_000) > 0.99
    assert repetition(("!" + " " * 1000) * 15 + "x") < 1
