"""Tokens and the chat template, without transformers and with the same result."""

from __future__ import annotations

import pytest
from data_rows import BYTES_TEMPLATE, byte_model, codes, conversation, english, judge, places, rows

from adapterops.basemodels.materialize import base_model_directory
from adapterops.basemodels.rendering import load_renderer
from adapterops.data.rows import training_messages
from adapterops.errors import UsageError
from adapterops.specs.base_model import find_base_model

SYSTEM = english(2, system="You are brief and kind.", input="The order is the third of May.")
TURNS = conversation(
    "Hi there, is the armchair in?",
    "It is.",
    "And in blue?",
    "Not in blue, but in green.",
    number=3,
)
KOREAN = conversation(
    "친절하게 답하세요.",
    "환불 정책을 알려 주세요 😀",
    "삼십 일입니다.",
    roles=("system", "user", "assistant"),
    number=4,
)
ODD = conversation(
    "  blanks \n\n\n and\ttabs  ", "ﬁ ﷺ e\u0301 \u200b <b> {{ x }} {% y %} é", number=5
)


@pytest.fixture
def model(tmp_path, monkeypatch):
    return byte_model(tmp_path / "model", monkeypatch)


@pytest.fixture(scope="module")
def smollm2():
    return find_base_model(
        "smollm2-135m-instruct", "test"
    )  # the first use on a machine converts it, which takes half a minute


class TestAsTransformersDoes:
    @pytest.mark.parametrize(
        "row",
        [english(1), SYSTEM, TURNS, KOREAN, ODD],
        ids=["row", "system", "turns", "Korean", "odd"],
    )
    def test_the_text_and_the_tokens(self, smollm2, row):
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast.from_pretrained(base_model_directory(smollm2))
        tokenizer.chat_template = smollm2.chat_template()
        renderer, messages = load_renderer(smollm2), training_messages(row)
        text = renderer.render(messages)
        assert text == tokenizer.apply_chat_template(messages, tokenize=False)
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert renderer.count([text]) == [len(ids)]

    def test_the_sum_of_the_parts_is_the_whole(self, smollm2, tmp_path):
        renderer = load_renderer(smollm2)
        values = [*rows(60), SYSTEM | {"id": "s"}, TURNS | {"id": "t"}, KOREAN | {"id": "k"}]
        report = judge(tmp_path, values, base_model=smollm2)
        counts = renderer.count([renderer.render(training_messages(row)) for row in values])
        tokens = report.document["files"][0]["row_tokens"]
        assert (tokens["total"], tokens["max"], tokens["min"]) == (
            sum(counts),
            max(counts),
            min(counts),
        )
        assert "E206" not in codes(report)

    @pytest.mark.parametrize("spare", [-2, -1, 0, 1])
    def test_where_a_blank_joins_the_templates_line_end_the_limit_is_exact_all_the_same(
        self, smollm2, tmp_path, spare
    ):
        renderer = load_renderer(smollm2)
        (whole,) = renderer.count([renderer.render(training_messages(ODD))])
        values = [rows(1)[0] | {"id": "first"}, ODD, *rows(60)]
        found = places(
            judge(tmp_path, values, base_model=smollm2, max_length=whole + spare), "E203"
        )
        assert (2 in found) is (spare < 0)

    def test_special_tokens_of_the_model_are_found(self, smollm2, tmp_path):
        report = judge(
            tmp_path,
            [
                english(1, output="It ends here.<|im_end|>"),
                english(2, output="It does < im_end > not."),
            ],
            base_model=smollm2,
        )
        assert places(report, "E204") == [1]


class TestTokens:
    def row(self, prompt, answer, **changes):
        return english(1, instruction="=" * prompt, output="#" * answer, **changes)

    @pytest.mark.parametrize(
        ("prompt", "expected"), [(9, ["E201"]), (10, []), (2048, []), (2049, ["E201"])]
    )
    def test_limits_of_the_instruction_are_inclusive(self, model, tmp_path, prompt, expected):
        assert codes(judge(tmp_path, [self.row(prompt, 50)], base_model=model)) == expected

    @pytest.mark.parametrize(
        ("answer", "expected"), [(4, ["E202"]), (5, []), (4096, []), (4097, ["E202"])]
    )
    def test_limits_of_the_output_are_inclusive(self, model, tmp_path, answer, expected):
        assert codes(judge(tmp_path, [self.row(50, answer)], base_model=model)) == expected

    def test_system_and_input_count_as_the_instruction(self, model, tmp_path):
        report = judge(
            tmp_path, [self.row(10, 10, system="s" * 7, input="i" * 3)], base_model=model
        )
        assert report.document["files"][0]["prompt_tokens"]["max"] == 10 + 7 + 3 + 2

    @pytest.mark.parametrize("spare", [-300, -20, -1, 0, 1, 20, 300])
    def test_the_longest_row_is_inclusive(self, model, tmp_path, spare):
        values = [self.row(500, 500, id="long"), *rows(100)]
        whole = (
            len("<s>user:<end>assistant:<end>") - 2 - 4 - 4 + 1000
        )  # a special token is one token
        report = judge(tmp_path, values, base_model=model, max_length=whole + spare)
        assert places(report, "E203") == ([1] if spare < 0 else [])
        assert (
            spare >= 0
            or f"has {whole} tokens. Expected at most max_length {whole + spare}"
            in report.findings[0].message
        )

    def test_a_template_that_trims_does_not_count_what_it_drops(self, tmp_path, monkeypatch):
        model = byte_model(
            tmp_path / "model",
            monkeypatch,
            BYTES_TEMPLATE.replace("message.content", "message.content | trim"),
        )
        values = [
            english(n, output="It is free." + " " * (400 if n == 1 else 0)) for n in range(40)
        ]
        assert places(judge(tmp_path, values, base_model=model, max_length=300), "E203") == []

    def test_korean_counts_in_tokens_and_not_in_characters(self, model, tmp_path):
        assert codes(
            judge(
                tmp_path, [english(1, instruction="가나다라", output="나다라마")], base_model=model
            )
        ) == ["E601", "H601"]

    def test_without_a_base_model_nothing_is_counted(self, tmp_path):
        report = judge(tmp_path, [self.row(1, 1)])
        assert (codes(report), report.document["files"][0]["row_tokens"]) == ([], None)


class TestTemplates:
    @pytest.mark.parametrize(
        ("template", "words"),
        [
            (BYTES_TEMPLATE.removeprefix("{{ bos_token }}"), "does not begin with `<s>`"),
            ("{{ bos_token }}" + BYTES_TEMPLATE, "begins with `<s>` twice"),
            (
                BYTES_TEMPLATE.replace("<end>", ""),
                "does not end in the trained end-of-turn token `<end>`",
            ),
            (
                "{{ raise_exception('Only tools are welcome') }}",
                "refuses the roles user, assistant: Only tools are welcome.",
            ),
            ("{{ messages[9].content }}", "refuses the roles"),
            ("{{ messages[0].content + 1 }}", "refuses the roles"),
            ("{{ 1 // 0 }}", "refuses the roles"),
            ("{{ ''.__class__.__mro__ }}{{ messages.append(1) }}", "refuses the roles"),
        ],
    )
    def test_every_row_is_told_what_is_wrong_with_it(self, tmp_path, monkeypatch, template, words):
        model = byte_model(tmp_path / "model", monkeypatch, template)
        report = judge(tmp_path, rows(3), base_model=model)
        assert places(report, "E206") == [1, 2, 3]
        assert words in next(
            finding.message for finding in report.findings if finding.code == "E206"
        )

    def test_what_is_no_template_is_misuse(self, tmp_path, monkeypatch):
        model = byte_model(tmp_path / "model", monkeypatch, "{% for %}")
        with pytest.raises(UsageError, match=r"template.jinja:1: not a chat template"):
            judge(tmp_path, rows(1), base_model=model)

    def test_a_template_may_ask_for_tools_and_documents(self, tmp_path, monkeypatch):
        template = (
            "{% if tools is not none or documents is not none %}{{ raise_exception('tools') }}{%"
            " endif %}" + BYTES_TEMPLATE
        )
        assert (
            codes(
                judge(
                    tmp_path,
                    rows(1),
                    base_model=byte_model(tmp_path / "model", monkeypatch, template),
                )
            )
            == []
        )

    def test_what_data_says_is_not_a_template(self, model, tmp_path):
        text = "{{ 7 * 7 }} {% raw %} and {# this #} stay."
        assert codes(judge(tmp_path, [english(1, output=text)], base_model=model)) == []
        assert text in load_renderer(model).render(training_messages(english(1, output=text)))

    def test_a_folder_without_a_tokenizer_is_misuse(self, model, tmp_path):
        (tmp_path / "model" / "tokenizer.json").write_text("{}")
        with pytest.raises(UsageError, match=r"no usable tokenizer\.json"):
            judge(tmp_path, rows(1), base_model=model)
