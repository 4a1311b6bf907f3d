"""A question in the chat template of a base, as transformers' apply_chat_template writes it."""

import time

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment  # a template comes from anywhere, as the weights do

from files import gguf, schemas
from files.errors import UserError


def chat_template(folder):
    """The template of a checkpoint's folder or GGUF file. Raises UserError where there is none."""
    if folder.is_file():
        template = gguf.read_tokens(folder).get("chat_template")
    elif (folder / "chat_template.jinja").is_file():
        template = schemas.read_text(folder / "chat_template.jinja")
    else:
        file = folder / "tokenizer_config.json"
        template = schemas.read_json(file, dict).get("chat_template") if file.is_file() else None
    if isinstance(template, list):  # several of them, by name
        template = {t["name"]: t["template"] for t in template if isinstance(t, dict)}.get("default")
    if not isinstance(template, str):
        raise UserError(f"{folder} has no chat template: leave out --chat")
    return template


def encode_chat(tokenizer, config, template, question):
    """The tokens of a question and of what stands before its answer. Raises UserError where the template fails."""

    def refuse(message):
        raise jinja2.TemplateError(message)

    how = {"trim_blocks": True, "lstrip_blocks": True, "extensions": ["jinja2.ext.loopcontrols"]}
    environment = ImmutableSandboxedEnvironment(**how)
    environment.globals |= {"raise_exception": refuse, "strftime_now": time.strftime}
    bos, eos = (tokenizer.decode([token]) for token in (getattr(config, "bos_token", tokenizer.eot), tokenizer.eot))
    names = {"bos_token": bos, "eos_token": eos, "tools": None, "documents": None}
    messages = [{"role": "user", "content": question}]
    try:
        text = environment.from_string(template).render(messages=messages, add_generation_prompt=True, **names)
    except Exception as error:  # a template can do anything wrong that Python can
        raise UserError(f"the chat template of the base fails ({error}): leave out --chat") from None
    return tokenizer.encoding.encode_special(text)
