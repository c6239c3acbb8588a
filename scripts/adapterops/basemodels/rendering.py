"""Chat template and tokenizer without transformers: a data check starts in one second, not ten."""

from __future__ import annotations

import datetime
import functools
import json
from dataclasses import dataclass

import jinja2
import jinja2.ext
import jinja2.sandbox
import tokenizers

from adapterops.basemodels.materialize import base_model_directory
from adapterops.errors import UsageError
from adapterops.specs.base_model import BaseModel


@dataclass(frozen=True, eq=False)
class Renderer:
    """Renders conversations as transformers' `apply_chat_template` does, and counts tokens.

    Args:
        tokenizer: the base model's `tokenizer.json`.
        template: its chat template, compiled.
        bos: the beginning-of-sequence token, empty where there is none.
        end_of_turn: the token that closes a turn.
        special: every token that a text must not contain, the longest first.
    """

    tokenizer: tokenizers.Tokenizer
    template: jinja2.Template
    bos: str
    end_of_turn: str
    special: tuple[str, ...]
    _variables: dict[str, str]

    def render(self, messages: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation.

        Raises:
            ValueError: the template refuses it; the message is the template's.
        """
        try:
            # transformers passes `tools` and `documents` too; templates ask whether they are None.
            return self.template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._variables,
            )
        except Exception as error:  # a template is a program: it can fail in any way
            raise ValueError(str(error).rstrip(".") or type(error).__name__) from None

    def count(self, texts: list[str]) -> list[int]:
        """Tokens of each text, special tokens in it counted as such and none added."""
        return [
            len(encoding)
            for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ]


@functools.cache
def load_renderer(model: BaseModel) -> Renderer:
    """Tokenizer and template of a base model.

    Raises:
        UsageError: the folder has no `tokenizer.json`, or the template is not one; see also
            `base_model_directory`.
    """
    directory = base_model_directory(model, weights=False)  # a hosted runner has no room for them
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
        tokens = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))[
            "added_tokens"
        ]
    except Exception as error:  # tokenizers raises bare Exception
        raise UsageError(
            f"{model.name}: {directory} holds no usable tokenizer.json ({error})."
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    variables = {name: text for name in names if (text := _text(settings.get(name)))} | {
        "pad_token": model.pad_token
    }
    special = {token["content"] for token in tokens if token["special"]} | {
        model.end_of_turn,
        *model.stop_tokens,
    }
    try:
        template = _environment().from_string(model.chat_template())
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(
            f"{model.name}: {model.chat_template_path}:{error.lineno}: not a chat template: {error}"
        ) from None
    return Renderer(
        tokenizer=tokenizer,
        template=template,
        bos=variables.get("bos_token", ""),
        end_of_turn=model.end_of_turn,
        special=tuple(sorted(special, key=len, reverse=True)),
        _variables=variables,
    )


def _text(token: object) -> str:
    """A token is written as a string or as an object with `content`."""
    return str(token["content"] if isinstance(token, dict) else token) if token else ""


def _environment() -> jinja2.Environment:
    """As in transformers' `utils/chat_template_utils.py`, where it compiles chat templates."""

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def now(form: str) -> str:
        return datetime.datetime.now().strftime(form)  # noqa: DTZ005  as transformers

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = now
    return environment
