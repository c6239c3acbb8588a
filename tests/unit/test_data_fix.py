"""`--fix`: what is mended, what is left alone to the byte, and that nothing is ever lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from data_rows import KOREAN, ROW, codes, conversation, english, jsonl, judge, policy, rows, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterops.data.fix import fix
from adapterops.errors import RejectedError, UsageError
from adapterops.schemas import ROOT

LIMITS = policy().limits
KEY = "-----BEGIN " + "PRIVATE KEY-----\nEXAMPLEfakeEXAMPLEfake01\n-----END " + "PRIVATE KEY-----"


def fixed(tmp_path, content, *, name="rows.jsonl", limits=LIMITS):
    source, target = write(tmp_path / name, content), tmp_path / f"fixed-{name}"
    done = fix(source, target, limits)
    return target.read_bytes(), done


class TestWhatIsMended:
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("Write to hong@example.com으로 오세요", "Write to [EMAIL]으로 오세요"),
            ("전화는 010-1234-5678로", "전화는 [PHONE]로"),
            ("번호 900101-1234567과 1588 1234", "번호 [RRN]과 [PHONE]"),
            (
                "여권 M12345678, card 4111 1111 1111 1111, 8.8.8.8",
                "여권 [PASSPORT], card [CARD], [IP]",
            ),
            ("면허 11-12-345678-90", "면허 [DRIVER_LICENCE]"),
            (f"Mine is:\n{KEY}\nThanks", "Mine is:\n[SECRET]\nThanks"),
            ("Cafe\u0301 at hong@example.com", "Café at [EMAIL]"),
            ("４１１１ １１１１ １１１１ １１１１ ok", "[CARD] ok"),
        ],
    )
    def test_each_kind_in_each_text(self, tmp_path, before, after):
        for key in ("instruction", "input", "system", "output", "expected_output"):
            row = english(
                1, **{"output": None} if key == "expected_output" else {}, **{key: before}
            )
            (value,) = map(json.loads, fixed(tmp_path, [row])[0].splitlines())
            assert value == {**row, key: after}

    def test_messages(self, tmp_path):
        content, done = fixed(
            tmp_path,
            [conversation("I am hong@example.com", "Hello", "Call 010-1234-5678", "I will.")],
        )
        assert [m["content"] for m in json.loads(content)["messages"]] == [
            "I am [EMAIL]",
            "Hello",
            "Call [PHONE]",
            "I will.",
        ]
        assert (done.masked, done.kept) == (1, 1)

    def test_a_word_in_the_instruction_tells_what_the_number_in_the_input_is(self, tmp_path):
        content, _ = fixed(
            tmp_path, [english(1, instruction="내 여권 번호가 맞나요?", input="M12345678")]
        )
        assert json.loads(content)["input"] == "[PASSPORT]"

    def test_a_row_of_a_thousand_addresses_is_masked_to_its_end(self, tmp_path):
        content, _ = fixed(
            tmp_path, [english(1, output=" ".join(f"u{n}@example.com" for n in range(1000)))]
        )
        assert json.loads(content)["output"] == " ".join(["[EMAIL]"] * 1000)

    def test_only_the_policys_kinds(self, tmp_path):
        content, done = fixed(
            tmp_path,
            [english(1, output="hong@example.com")],
            limits=policy(personal_data=("phone",)).limits,
        )
        assert (json.loads(content)["output"], done.masked) == ("hong@example.com", 0)

    def test_exact_copies_go_and_the_first_stays(self, tmp_path):
        content, done = fixed(
            tmp_path,
            [
                *rows(3),
                english(1, id="copy"),
                english(2, id="near", output=english(2)["output"] + "!"),
            ],
        )
        assert [json.loads(line)["id"] for line in content.splitlines()] == [
            "r0",
            "r1",
            "r2",
            "near",
        ]
        assert done.dropped == 1

    def test_rows_that_differ_only_in_what_is_masked_are_copies(self, tmp_path):
        content, done = fixed(
            tmp_path,
            [english(1, id=str(n), output=f"Write to u{n}@example.com.") for n in range(3)],
        )
        assert (len(content.splitlines()), done.dropped) == (1, 2)

    def test_byte_order_mark_and_line_ends(self, tmp_path):
        content, _ = fixed(tmp_path, b"\xef\xbb\xbf" + jsonl(rows(3)).replace(b"\n", b"\r\n"))
        assert content == jsonl(rows(3))

    def test_all_of_a_row_is_normalised_and_not_its_texts_alone(self, tmp_path):
        content, done = fixed(tmp_path, [english(1, source="cafe\u0301", tags=["e\u0301"])])
        assert (json.loads(content)["source"], json.loads(content)["tags"], done.normalised) == (
            "café",
            ["é"],
            1,
        )


class TestWhatIsLeftAlone:
    def test_untouched_rows_keep_their_bytes(self, tmp_path):
        odd = (
            b'{"output":"It is free, and it comes soon." ,   "instruction": "caf\\u00e9?",'
            b' "number": 1.50e2}'
        )
        content, done = fixed(
            tmp_path, odd + b"\n" + jsonl([english(1, output="hong@example.com")])
        )
        assert content.splitlines()[0] == odd
        assert done.masked == 1

    @pytest.mark.parametrize(
        "bad",
        [
            b'{"id": "truncated, "hong@example.com"',
            b'{"id": "\xff\xfe"}',
            b"[1, 2]",
            b'{"id": 1, "id": 2}',
            b'{"id": NaN}',
            b'{"id": "\\ud83d"}',
            b'{"instruction": "no output"}',
            b'{"instruction": 3, "output": "three"}',
            b'{"instruction": "a", "output": "b", "input": 5}',
            b'{"instruction": "a", "output": "b", "system": ["s"]}',
            b'{"instruction": "a", "output": "b", "messages": null}',
            b'{"messages": [{"content": "no role"}, {"content": "no role"}]}',
            (
                b'{"messages": [{"role": "user", "content": null}, {"role": "assistant", "content":'
                b' "b"}]}'
            ),
            b'{"messages": "text"}',
            b'{"id": "' + b"x" * 1_000_001 + b'"}',
            b'{"expected_format": ' + b"[" * 500 + b"]" * 500 + b"}",
        ],
        ids=lambda bad: bad[:40].decode(errors="replace"),
    )
    def test_a_row_that_cannot_be_read_stays_as_it_is_and_is_named(self, tmp_path, bad):
        content, done = fixed(tmp_path, jsonl([english(1)]) + bad + b"\n" + jsonl([english(2)]))
        assert content == jsonl([english(1)]) + bad + b"\n" + jsonl([english(2)])
        assert (done.left, done.kept) == ([2], 3)
        assert "for a person to mend: lines 2" in str(done)

    def test_an_array_stays_one(self, tmp_path):
        values = [english(1), english(2, output="hong@example.com"), english(1, id="copy")]
        content, done = fixed(tmp_path, json.dumps(values, indent=2).encode(), name="rows.json")
        assert [row["output"] for row in json.loads(content)] == [english(1)["output"], "[EMAIL]"]
        assert (done.masked, done.dropped, done.kept) == (1, 1, 2)
        assert fixed(tmp_path, b"[]")[0] == b"[]\n"

    @pytest.mark.parametrize("fault", [b"\n", b',\n{"id": ', b", oops]", b"] more", b', "\xff"]'])
    def test_of_an_array_that_breaks_off_nothing_is_lost(self, tmp_path, fault):
        content = (
            b"[" + jsonl([english(1)]) + b"," + jsonl([english(2)]) + fault + jsonl([english(3)])
        )
        path = write(tmp_path / "rows.json", content)
        with pytest.raises(RejectedError, match="would be lost"):
            fix(path, path, LIMITS)
        assert path.read_bytes() == content

    @pytest.mark.parametrize("name", ["absent.jsonl", "."])
    def test_what_cannot_be_opened_is_misuse(self, tmp_path, name):
        with pytest.raises(UsageError):
            fix(tmp_path / name, tmp_path / "target", LIMITS)

    def test_a_link_stays_a_link(self, tmp_path):
        write(tmp_path / "real.jsonl", [english(1, output="hong@example.com")])
        (tmp_path / "link.jsonl").symlink_to("real.jsonl")
        fix(tmp_path / "link.jsonl", tmp_path / "link.jsonl", LIMITS)
        assert (tmp_path / "link.jsonl").is_symlink()
        assert b"[EMAIL]" in (tmp_path / "real.jsonl").read_bytes()


BAD = [
    "hong@example.com",
    "010-1234-5678",
    "900101-1234567",
    "1604188805000",
    "4111 1111 1111 1111",
    "8.8.8.8",
    "여권 M12345678",
    "Cafe\u0301",
]
TEXT = st.lists(
    st.sampled_from([*BAD, " ", "a", "[PHONE]", "[RRN]", "-", "1588-1600", "１", "\n", "\u0301"]),
    max_size=8,
).map("".join)
VALUES = st.one_of(
    st.builds(lambda a, b, c: {**ROW, "instruction": a, "input": b, "output": c}, TEXT, TEXT, TEXT),
    st.builds(lambda a, b, c: conversation(a, b, c, "Yes."), TEXT, TEXT, TEXT),
    st.just({"id": "broken"}),
    st.just(KOREAN),
)


@settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.lists(VALUES, min_size=1, max_size=6), st.booleans(), st.booleans())
def test_what_was_fixed_needs_no_fixing(tmp_path, values, array, windows):
    content = json.dumps(values, ensure_ascii=False, indent=1).encode() if array else jsonl(values)
    once, _ = fixed(tmp_path, content.replace(b"\n", b"\r\n") if windows else content)
    twice, done = fixed(tmp_path, once)
    assert once == twice
    assert (done.masked, done.normalised, done.dropped) == (0, 0, 0)
    left = set(codes(judge(tmp_path, once)))
    assert not left & {
        "E102",
        "E301",
        "E302",
        "E303",
        "E304",
        "E305",
        "E306",
        "E307",
        "E309",
        "H102",
        "H205",
        "E112",
    }


@settings(
    max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.sampled_from(
                [b"{", b"}", b"[", b"]", b'"', b"\n", b"\r", b"\xff", b"a", b"\xef\xbb\xbf"]
            )
        ).map(b"".join),
    )
)
def test_no_bytes_end_in_a_traceback_and_no_line_is_lost(tmp_path, content):
    try:
        after, _ = fixed(tmp_path, content)
    except RejectedError:
        return
    if after != b"[]\n":
        lines = [
            line.strip()
            for line in content.removeprefix(b"\xef\xbb\xbf").splitlines()
            if line.strip(b" \t\r\n")
        ]
        assert [
            line.strip() for line in after.splitlines() if line.strip(b" \t\r\n")
        ] == lines or content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["


def test_killed_between_writing_and_renaming_it_leaves_the_old_file(tmp_path):
    path = write(tmp_path / "rows.jsonl", [english(1, output="hong@example.com")])
    before = path.read_bytes()
    program = (
        "import os, pathlib, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from adapterops.data.fix import fix; from adapterops.specs.policy import load_policy\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "path = pathlib.Path(sys.argv[2]); fix(path, path, load_policy().limits)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, ROOT / "scripts", path], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == before


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.jsonl", [english(1, output="hong@example.com")])
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        fix(path, path, LIMITS)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
