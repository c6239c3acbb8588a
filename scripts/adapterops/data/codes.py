"""The stable codes of findings: the source of `docs/errors.md`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Code:
    """One code: what was found, why it matters, what to do."""

    title: str
    why: str
    fix: str


CODES = {
    "E101": Code(
        "The file is not UTF-8",
        "Its text cannot be read.",
        "Save it as UTF-8 without a byte-order mark.",
    ),
    "E102": Code(
        "The file begins with a byte-order mark",
        "Tools that do not expect it see a stray character in the first key.",
        "Save it as UTF-8 without a byte-order mark.",
    ),
    "E103": Code(
        "The line is not JSON",
        "A truncated or hand-edited line cannot be read.",
        "Mend the line where the message points.",
    ),
    "E104": Code(
        "The row is not an object",
        "A row needs named fields.",
        'Write `{"instruction": …, "output": …}`.',
    ),
    "E105": Code(
        "A key stands twice", "JSON readers keep the last one silently.", "Remove one of the two."
    ),
    "E106": Code(
        "NaN or Infinity",
        "JSON does not have them; other readers fail on them.",
        "Write a number or null.",
    ),
    "E107": Code(
        "The row is too large",
        "A row of megabytes is a mistake, and cannot be trained on.",
        "Split or shorten it.",
    ),
    "E108": Code(
        "The file has no rows",
        "There is nothing to train on or to judge by.",
        "Add rows, or remove the file.",
    ),
    "E109": Code(
        "A lone surrogate",
        "Half of a character cannot be written as UTF-8.",
        "Write the whole character.",
    ),
    "E110": Code(
        "The row breaks its schema",
        "Every stage relies on these fields.",
        "See `data/README.md` for the fields of a row.",
    ),
    "E111": Code(
        "An id stands twice",
        "Reports and comparisons refer to rows by id.",
        "Give the row an id of its own.",
    ),
    "E112": Code(
        "Windows line ends",
        "They make every line a change in a diff.",
        "Save the file with LF line ends.",
    ),
    "E201": Code(
        "The instruction is too short or too long",
        "Too short is no signal; too long is cut.",
        "Rewrite it within the limits of the policy.",
    ),
    "E202": Code(
        "The output is too short or too long",
        "Too short is no signal; too long makes training unstable.",
        "Rewrite it within the limits of the policy.",
    ),
    "E203": Code(
        "The row is longer than max_length",
        "Its end, with the answer, would be cut off.",
        "Shorten the row, or raise the recipe's max_length.",
    ),
    "E204": Code(
        "A special token in the text",
        "It would end a turn or fake one.",
        "Remove it from the text.",
    ),
    "E205": Code(
        "Duplicate rows over the limit",
        "Repeated rows are memorised, and weigh more than the rest.",
        "Remove the copies that H205 and H206 name; `--fix` removes the exact ones.",
    ),
    "E206": Code(
        "The row does not render",
        "The chat template cannot write it, or not with one BOS in front and a trained end-of-turn"
        " token behind each answer.",
        "Mend the order of roles, or the base model's template.",
    ),
    "E301": Code(
        "An e-mail address", "Personal data must not be trained on.", "Replace it with `[EMAIL]`."
    ),
    "E302": Code(
        "A phone number", "Personal data must not be trained on.", "Replace it with `[PHONE]`."
    ),
    "E303": Code(
        "A resident registration number",
        "Personal data must not be trained on.",
        "Replace it with `[RRN]`.",
    ),
    "E304": Code(
        "A passport number",
        "Personal data must not be trained on.",
        "Replace it with `[PASSPORT]`.",
    ),
    "E305": Code(
        "A driver's licence number",
        "Personal data must not be trained on.",
        "Replace it with `[DRIVER_LICENCE]`.",
    ),
    "E306": Code(
        "A bank card number", "Personal data must not be trained on.", "Replace it with `[CARD]`."
    ),
    "E307": Code(
        "A public IP address",
        "It can name a person's connection.",
        "Replace it with `[IP]`, or with an address for documentation such as 203.0.113.7.",
    ),
    "E309": Code(
        "A key, token or private key",
        "A model repeats what it was trained on; whoever has the secret can use it.",
        "Revoke it, then replace it with `[SECRET]`.",
    ),
    "E401": Code(
        "An evaluation row is in the training data",
        "Its score would measure memory.",
        "Remove the training row, or write another evaluation row.",
    ),
    "E501": Code(
        "A licence that is not allowed",
        "Rows without a licence that permits training are not trained on.",
        "Use data under a licence of `configs/data_policy.yaml`, or have the licence added there by"
        " review.",
    ),
    "E601": Code(
        "Too many rows in another language",
        "An adapter answers in the languages that it was trained on.",
        "Remove the rows that H601 names, or set the file's `language` in"
        " `configs/data_policy.yaml`.",
    ),
    "H102": Code(
        "Text is not in Unicode normal form C",
        "Equal words compare as different.",
        "Normalise the text to NFC.",
    ),
    "H103": Code(
        "Invisible characters in the text",
        "Equal words compare as different, and a reviewer does not see what is trained on.",
        "Remove them, unless the writing system needs them.",
    ),
    "H205": Code(
        "An exact copy", "Repeated rows are memorised.", "Remove one of the two; `--fix` does."
    ),
    "H206": Code(
        "A near duplicate",
        "It teaches little and weighs twice.",
        "Remove one of the two, or make them differ in substance.",
    ),
    "H207": Code(
        "The same instruction with another output",
        "The model is taught to answer by chance.",
        "Keep the better answer, or say in the instruction what makes the difference.",
    ),
    "H402": Code(
        "A training row much like an evaluation row",
        "Its score would measure memory in part.",
        "Compare the two; remove one of them if knowing the training row gives the answer away.",
    ),
    "H601": Code(
        "A row in another language",
        "See E601.",
        "Translate or remove it, or correct its `language`.",
    ),
    "H701": Code(
        "The data drifted",
        "Length, language, tasks or refusals are distributed otherwise than on the base branch.",
        "Nothing, if that is the point of the change; say so in the pull request.",
    ),
}


def error_page() -> str:
    """`docs/errors.md`."""
    parts = [
        "# Error codes",
        "",
        (
            "Errors (E) block a pull request, hints (H) advise. Generated by `python"
            " scripts/validate_data.py --write-error-page`."
        ),
        "",
    ]
    for name, code in CODES.items():
        parts += [f"## {name}", "", f"**{code.title}.** {code.why} {code.fix}", ""]
    return "\n".join(parts)
