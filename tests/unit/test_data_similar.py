"""Copies: exact, near and contradicting; and evaluation rows that are trained on."""

from __future__ import annotations

import pytest
from data_rows import KOREAN, codes, english, evaluation, judge, places, rows, write
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterops.data.normal import exact_form, loose_form
from adapterops.data.similar import gram_set, jaccard
from adapterops.data.validate import validate


def wide(text):
    return "".join(
        chr(ord(character) + 0xFEE0) if "!" <= character <= "~" else character for character in text
    )


def korean(
    number, instruction, output="네, 받으신 날부터 삼십 일 안에 언제든지 반품하실 수 있습니다."
):
    return {**KOREAN, "id": f"k{number}", "instruction": instruction, "output": output}


class TestForms:
    @pytest.mark.parametrize(
        "other",
        [
            "환불정책을 알려줘",
            "환불 정책을  알려 줘",
            "환불 정책을, 알려줘!",
            "「환불 정책」을 알려 줘…",
            "환불_정책을 알려줘",
        ],
    )
    def test_spaces_and_punctuation_do_not_count(self, other):
        assert loose_form("환불 정책을 알려 줘") == loose_form(other)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("ABC", "abc"),
            ("ＡＢＣ１", "abc1"),
            ("Straße", "STRASSE"),
            ("café", "cafe\u0301"),
            ("①", "1"),
            ("한글", "\u1112\u1161\u11ab\u1100\u1173\u11af"),
        ],
    )
    def test_case_width_and_composition_do_not_count(self, one, other):
        assert exact_form(one) == exact_form(other)
        assert loose_form(one) == loose_form(other)

    @pytest.mark.parametrize(
        ("one", "other"), [("환불 정책", "환불정책"), ("a.", "a"), ("a-b", "ab")]
    )
    def test_what_only_the_loose_form_takes_for_equal(self, one, other):
        assert exact_form(one) != exact_form(other)
        assert loose_form(one) == loose_form(other)

    @pytest.mark.parametrize(
        ("one", "other"), [("1.5", "15.1"), ("yes", "no"), ("가", "각"), ("é", "e")]
    )
    def test_what_differs(self, one, other):
        assert loose_form(one) != loose_form(other)

    @settings(max_examples=300, deadline=None)
    @given(st.text())
    def test_a_form_has_itself_as_its_form(self, text):
        assert loose_form(loose_form(text)) == loose_form(text) or exact_form(
            exact_form(text)
        ) != exact_form(text)
        assert exact_form(text) == exact_form(f"  {text}\n")


class TestNearDuplicates:
    @pytest.mark.parametrize(
        "instruction",
        [
            "사용한 스탠드의 환불정책을 알려 주세요",
            "사용한  스탠드의 환불 정책을 알려주세요!",
            "『사용한 스탠드』의 환불 정책을, 알려 주세요?",
        ],
    )
    def test_korean_without_its_spaces_is_a_near_duplicate(self, tmp_path, instruction):
        values = [
            *rows(30),
            korean(1, "사용한 스탠드의 환불 정책을 알려 주세요"),
            korean(2, instruction),
        ]
        report = judge(tmp_path, values)
        assert places(report, "H206") == [32]
        assert "(similarity 1.00)" in next(
            finding.message for finding in report.findings if finding.code == "H206"
        )
        assert report.document["files"][0]["duplicates"] == {"exact": 0, "near": 1, "conflicts": 0}

    def test_full_width_letters_are_exact_copies(self, tmp_path):
        row = english(3)
        report = judge(
            tmp_path,
            [
                *rows(30),
                {
                    **row,
                    "id": "copy",
                    "instruction": wide(row["instruction"]),
                    "output": row["output"].upper(),
                },
            ],
        )
        assert report.document["files"][0]["duplicates"] == {"exact": 1, "near": 0, "conflicts": 0}

    def pair(self, tail):
        """Two rows that share 200 characters; `tail` characters of the second are other ones."""
        shared = "".join(english(n)["output"] for n in range(10))
        one = english(50, output=shared)
        return one, {**one, "id": "other", "output": shared + "qzxj" * (tail // 4)}

    @pytest.mark.parametrize("step", range(8))
    def test_from_eight_tenths_on_and_not_below(self, tmp_path, step):
        values = self.pair(60 + 16 * step)
        forms = [gram_set(loose_form(f"{row['instruction']}\n{row['output']}")) for row in values]
        similarity = jaccard(*forms)
        report = judge(
            tmp_path,
            list(values),
            limits={"near_duplicate": round(similarity + 0.0005, 6), "duplicate_rate": 1.0},
        )
        assert "H206" not in codes(report)
        report = judge(
            tmp_path,
            list(values),
            limits={"near_duplicate": round(similarity - 0.0005, 6), "duplicate_rate": 1.0},
        )
        assert places(report, "H206") == [2]

    def test_the_limit_is_inclusive(self, tmp_path):
        texts = [
            "a" + "bcdefghijklmnopqrstuvwxyz0123456789"[:9],
            "a" + "bcdefghijklmnopqrstuvwxyz0123456789"[:10],
        ]
        forms = [gram_set(text) for text in texts]
        assert jaccard(*forms) == 6 / 7
        values = [english(n, instruction=text[:5], output=text[5:]) for n, text in enumerate(texts)]
        for limit, expected in ((6 / 7, [2]), (6 / 7 + 1e-9, [])):
            assert (
                places(
                    judge(
                        tmp_path, values, limits={"near_duplicate": limit, "duplicate_rate": 1.0}
                    ),
                    "H206",
                )
                == expected
            )

    def test_hundreds_of_pairs_just_above_are_found_but_for_one_in_ten(self, tmp_path):
        values = []
        for number in range(200):
            row = english(number)
            values += [row, {**row, "id": f"n{number}", "output": row["output"] + " But see"}]
        similar = [
            jaccard(
                *(
                    gram_set(loose_form(f"{r['instruction']}\n{r['output']}"))
                    for r in values[n : n + 2]
                )
            )
            for n in range(0, 400, 2)
        ]
        assert min(similar) >= 0.85
        found = judge(tmp_path, values, limits={"duplicate_rate": 1.0}).document["files"][0][
            "duplicates"
        ]["near"]
        assert found >= 198


class TestRate:
    @pytest.mark.parametrize(
        ("copies", "total", "fails"),
        [(4, 100, False), (5, 100, True), (1, 21, False), (1, 20, True), (50, 100, True)],
    )
    def test_it_is_one_minus_clusters_over_rows_and_must_stay_below(
        self, tmp_path, copies, total, fails
    ):
        values = [*rows(total - copies), *(english(0, id=f"c{n}") for n in range(copies))]
        report = judge(tmp_path, values)
        assert ("E205" in codes(report)) is fails
        if fails:
            message = next(finding.message for finding in report.findings if finding.code == "E205")
            assert message.startswith(
                f"{copies} of {total} rows ({copies / total:.1%}) repeat another one, {copies}"
                " exactly"
            )

    def test_exact_and_near_are_counted_apart_and_a_chain_is_one_cluster(self, tmp_path):
        row = english(0)
        near = {**row, "id": "near", "output": row["output"] + "!"}
        values = [*rows(40), {**row, "id": "copy"}, near, {**near, "id": "copy of near"}]
        report = judge(tmp_path, values)
        assert report.document["files"][0]["duplicates"] == {"exact": 2, "near": 1, "conflicts": 0}
        message = next(finding.message for finding in report.findings if finding.code == "E205")
        assert message.startswith(
            "3 of 43 rows (7.0%) repeat another one, 2 exactly and the rest nearly"
        )

    def test_copies_across_files_belong_to_the_later_file(self, tmp_path):
        from data_rows import policy

        one = write(tmp_path / "one.jsonl", rows(30))
        two = write(tmp_path / "two.jsonl", [*rows(30, first=30), english(3, id="copy")])
        report = validate([one, two], None, base_model=None, policy=policy())
        (finding,) = report.findings
        assert (finding.code, finding.file.endswith("two.jsonl"), finding.line) == (
            "H205",
            True,
            31,
        )
        assert "one.jsonl:4" in finding.message


class TestContradictions:
    def test_the_same_instruction_with_another_output_names_both(self, tmp_path):
        report = judge(
            tmp_path,
            [
                *rows(30),
                english(
                    3,
                    id="other",
                    instruction=english(3)["instruction"].upper(),
                    output="Ask in the shop, please.",
                ),
            ],
        )
        (finding,) = report.findings
        assert (finding.code, finding.line) == ("H207", 31)
        assert "line 4" in finding.message

    def test_the_same_instruction_with_another_input_is_none(self, tmp_path):
        values = [
            english(1, input="In May."),
            english(1, id="b", input="In June.", output="Ask in the shop, please."),
        ]
        assert codes(judge(tmp_path, values)) == []


class TestContamination:
    ASKED = "Could you tell me which of the two armchairs is the softer one for an old dog?"

    def judge(self, tmp_path, training, asked):
        return judge(tmp_path, training, [evaluation(0, instruction=asked)])

    @pytest.mark.parametrize(
        "other", [ASKED.upper(), wide(ASKED), f"  {ASKED}\n", ASKED.replace(" ", "  ")]
    )
    def test_the_same_prompt_is_an_error(self, tmp_path, other):
        assert codes(
            self.judge(tmp_path, [*rows(3), english(9, instruction=other)], self.ASKED)
        ) == ["E401"]

    @pytest.mark.parametrize(
        ("training", "shown"),
        [
            (f"Hello there. {ASKED}", "100% of the prompt"),
            (ASKED.replace(" ", ""), "100% of the prompt"),
            (ASKED.replace("two", "three"), "% of the prompt"),
            (ASKED[:-12], "% of the prompt"),
        ],
    )
    def test_a_prompt_that_stands_in_a_training_row_is_a_hint_with_both_texts(
        self, tmp_path, training, shown
    ):
        report = self.judge(tmp_path, [*rows(3), english(9, instruction=training)], self.ASKED)
        (finding,) = report.findings
        assert (finding.code, finding.file.endswith("eval.jsonl"), finding.line) == (
            "H402",
            True,
            1,
        )
        assert shown in finding.message
        assert "training.jsonl:4" in finding.message
        assert " / " in finding.message

    def test_a_prompt_in_a_training_answer_is_a_hint(self, tmp_path):
        assert codes(
            self.judge(
                tmp_path, [*rows(3), english(9, output=f"You asked: {self.ASKED}")], self.ASKED
            )
        ) == ["H402"]

    @pytest.mark.parametrize(
        "asked",
        ["Is the armchair soft?", "환불 정책을 알려 주시겠어요?", "Which colours are there today?"],
    )
    def test_prompts_of_less_than_thirteen_words_too(self, tmp_path, asked):
        report = self.judge(
            tmp_path, [*rows(3), english(9, instruction=f"Good day! {asked} Thanks.")], asked
        )
        assert "H402" in codes(report)

    def test_wording_that_all_evaluation_rows_share_is_none(self, tmp_path):
        task = "Classify the request of this customer as one of: return, delivery, payment, other. "
        asked = [
            evaluation(
                n, instruction=task + "Request: " + " ".join(english(n)["output"].split()[8:12])
            )
            for n in range(40)
        ]
        assert (
            codes(
                judge(
                    tmp_path,
                    [english(n, instruction=task + f"Request {n}") for n in range(300, 303)],
                    asked,
                )
            )
            == []
        )

    def test_each_evaluation_row_is_named_once_with_its_best_match(self, tmp_path):
        values = [
            english(1, instruction=self.ASKED[:-8]),
            english(2, instruction=f"Hi. {self.ASKED}"),
            english(3, instruction=self.ASKED[4:]),
        ]
        report = self.judge(tmp_path, values, self.ASKED)
        hints = [finding for finding in report.findings if finding.code == "H402"]
        assert len(hints) == 1
        assert "training.jsonl:2" in hints[0].message
